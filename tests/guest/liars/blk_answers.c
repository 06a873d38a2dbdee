/*
 * Lies of a frontend of disks that are answered with an error, or that only hurt the liar. See
 * blk.h.
 */
#include "blk.h"

static const u64 beyond[] = {
    SECTORS, SECTORS - 7, 1ull << 32, (1ull << 55) - 4, 1ull << 55, 1ull << 63, ~0ull - 7, ~0ull - 3, ~0ull,
};

static void beyond_the_end(void)
{
    for (u32 i = 0; i < ARRAY_SIZE(beyond); i++)
        for (u8 operation = BLKIF_OP_READ; operation <= BLKIF_OP_FLUSH_DISKCACHE; operation++) {
            request(operation, 1, beyond[i]);
            answered(operation, BLKIF_RSP_ERROR);
            if (operation > BLKIF_OP_WRITE)
                continue;
            indirect_request(operation, 2, beyond[i]);
            answered(operation, BLKIF_RSP_ERROR);
        }
}

static void discards(void)
{
    static const u64 sectors[] = {1, 8, 1ull << 55, 1ull << 63, ~0ull - SECTORS, ~0ull};

    for (u32 i = 0; i < ARRAY_SIZE(beyond); i++)
        for (u32 j = 1; j < ARRAY_SIZE(sectors); j++) {
            discard(0, beyond[i], sectors[j]);
            answered(BLKIF_OP_DISCARD, BLKIF_RSP_ERROR);
        }
    for (u32 j = 2; j < ARRAY_SIZE(sectors); j++) {
        discard(0, 1, sectors[j]);
        answered(BLKIF_OP_DISCARD, BLKIF_RSP_ERROR);
    }
    discard(0, 1, 0);
    answered(BLKIF_OP_DISCARD, BLKIF_RSP_ERROR);
    discard(BLKIF_DISCARD_SECURE, 0, 8);
    answered(BLKIF_OP_DISCARD, BLKIF_RSP_EOPNOTSUPP);
    discard(0xff, 0, 8);
    answered(BLKIF_OP_DISCARD, BLKIF_RSP_EOPNOTSUPP);
}

static void operations(void)
{
    for (u32 operation = 0; operation < 256; operation++) {
        int status = operation < 2 ? BLKIF_RSP_ERROR : operation < 4 ? BLKIF_RSP_OKAY : BLKIF_RSP_EOPNOTSUPP;

        if (operation == BLKIF_OP_DISCARD || operation == BLKIF_OP_INDIRECT)
            continue;
        /* Reads and writes of nothing, flushes, and what nobody knows. */
        request((u8)operation, 0, 0);
        answered((u8)operation, status);
        if (operation > BLKIF_OP_INDIRECT) {
            request((u8)operation, 255, ~0ull);
            answered((u8)operation, status);
        }
    }
}

static void flush_with_data(void)
{
    request(BLKIF_OP_FLUSH_DISKCACHE, 1, OURS);
    answered(BLKIF_OP_FLUSH_DISKCACHE, BLKIF_RSP_OKAY);
}

static void one_id(void)
{
    struct blkif_response *a;

    request(BLKIF_OP_READ, 1, 0)->id = 7;
    request(BLKIF_OP_READ, 1, SECTORS)->id = 7;
    request(99, 1, 0)->id = 7;
    ring_push(&ring);
    for (int want = 0; want >= -2; want--) {
        a = ring_answer(&ring);
        check_true("an answer for each", a && a->id == 7 && a->status == want);
    }
}

static void one_page(void)
{
    struct blkif_request *r = request(BLKIF_OP_READ, BLKIF_MAX_SEGMENTS_PER_REQUEST, 0);

    for (u32 i = 0; i < BLKIF_MAX_SEGMENTS_PER_REQUEST; i++)
        r->seg[i].gref = refs[0];
    ring_push(&ring);
    struct blkif_response *a = ring_answer(&ring);
    check_true("one page for all segments", a && a->status == BLKIF_RSP_OKAY);
    check_true("the last of them", holds_sectors(data[0], 80, 8));
}

static void scribbled_indexes(void)
{
    ring.shared[RSP_PROD] = 0x1234;
    ring.shared[REQ_EVENT] = 0xffff0000u;
    request(BLKIF_OP_READ, 1, 0);
    ring_push(&ring);
    check_hex("responses are counted where nobody lies", ring.shared[RSP_PROD], 1);
    ring.consumed = 1;
    blk_check();
}

static void events_without_requests(void)
{
    for (u32 i = 0; i < 3000; i++)
        evtchn_send(port);
    blk_check();
}

static void revoked_while_mapped(void)
{
    grant_ref_t page = grant_page(data[1]);

    persistent = true;
    frontend_leave();
    frontend_connect();
    request(BLKIF_OP_READ, 1, 0)->seg[0].gref = page;
    ring_push(&ring);
    check_true("a persistent grant", ring_answer(&ring) != NULL);
    grant_revoke(page);
    blk_check();
    request(BLKIF_OP_READ, 1, 0)->seg[0].gref = page;
    ring_push(&ring);
    check_true("it is mapped still", ring_answer(&ring) != NULL && holds_sectors(data[1], 0, 8));
    persistent = false;
}

/* The backend keeps the page, and we have another one at its place. */
static void ring_given_back(void)
{
    u8 *page = alloc_pages(1);
    grant_ref_t ref = grant_page(page);

    frontend_leave();
    blk_nodes();
    frontend_set("ring-ref", ref);
    frontend_state(XenbusStateInitialised);
    check_true("connected", frontend_served());
    balloon_out(page);
    evtchn_send(port);
    grant_revoke(ref);
    evtchn_send(port);
}

static void nodes_removed(void)
{
    frontend_remove("ring-ref");
    frontend_remove("event-channel");
    frontend_remove("protocol");
    frontend_text("ring-ref", long_text());
    blk_check();
}

static void port_closed_while_connected(void)
{
    request(BLKIF_OP_READ, 1, 0);
    evtchn_close(port);
    ring_push(&ring);
    port = new_port();
}

static void ring_on_itself(void)
{
    /* Both pages are one: the second half of the ring lies on its head. */
    frontend_leave();
    blk_nodes();
    frontend_set("ring-page-order", 1);
    frontend_set("ring-ref0", ring_refs[0]);
    frontend_set("ring-ref1", ring_refs[0]);
    frontend_state(XenbusStateInitialised);
    check_true("connected", frontend_served());
    blk_check();
}

static void two_queues_one_ring(void)
{
    evtchn_port_t other = new_port();

    frontend_leave();
    blk_nodes();
    frontend_set("multi-queue-num-queues", 2);
    frontend_set("queue-0/ring-ref", ring_refs[0]);
    frontend_set("queue-1/ring-ref", ring_refs[0]);
    frontend_set("queue-0/event-channel", port);
    frontend_set("queue-1/event-channel", other);
    frontend_state(XenbusStateInitialised);
    check_true("connected", frontend_served());
    blk_check();
    frontend_leave();
    evtchn_close(other);
    frontend_connect();
}

static const struct lie answers[] = {
    {"sectors beyond the end, up to 2^64", NULL, beyond_the_end},
    {"discards beyond the end, of nothing, secure", NULL, discards},
    {"operations 0 to 255, without data and with 255 segments", NULL, operations},
    {"flush with data", NULL, flush_with_data},
    {"one id for three requests", NULL, one_id},
    {"one page for all segments", NULL, one_page},
    {"rsp_prod and req_event written to", NULL, scribbled_indexes},
    {"events without requests", NULL, events_without_requests},
    {"a grant revoked while it is mapped", NULL, revoked_while_mapped},
    {"the ring's page given back while connected", NULL, ring_given_back},
    {"nodes changed while connected", NULL, nodes_removed},
    {"event channel closed while connected", NULL, port_closed_while_connected},
    {"a ring of one page twice", NULL, ring_on_itself},
    {"two queues with one ring", NULL, two_queues_one_ring},
};

static void data_onto_the_ring(void)
{
    /* Sector 0 over the indexes: no request at all, as it comes. */
    request(BLKIF_OP_READ, 1, 1)->seg[0].gref = ring_refs[0];
    ring_push(&ring);
}

static void many_segments(void)
{
    for (u32 count = 12; count < 256; count += count < 20 ? 1 : 47) {
        frontend_connect();
        request(count & 1 ? BLKIF_OP_READ : BLKIF_OP_WRITE, (u8)count, 0);
        ring_push(&ring);
        check_true("cut off", !frontend_served());
        frontend_leave();
    }
    frontend_connect();
    data_onto_the_ring();
    frontend_leave();
    printk("answered: 12 to 255 segments; data onto the ring\n");
}

void blk_tell_answers(void)
{
    frontend_tell(answers, ARRAY_SIZE(answers));
    frontend_tell_states();
    frontend_next();
    many_segments();
}
