/*
 * Lies of a frontend of network interfaces that are answered with an error, cost the frame, or only
 * hurt the liar. See net.h.
 */
#include "net.h"

/* ---- the transmit ring ---- */

static void short_frames(void)
{
    for (u32 size = 0; size < 14; size++) {
        slot(liar.out_refs[0], 0, 0, size);
        tx_answered(1, NETIF_RSP_ERROR);
    }
}

static void pieces_beyond_the_size(void)
{
    slot(liar.out_refs[0], 0, NETTXF_more_data, 100);
    slot(liar.out_refs[1], 0, 0, 101);
    tx_answered(2, NETIF_RSP_ERROR);
    slot(liar.out_refs[0], 0, NETTXF_more_data, 65535);
    for (u32 i = 0; i < 17; i++)
        slot(liar.out_refs[1], 0, i < 16 ? NETTXF_more_data : 0, 4096);
    tx_answered(18, NETIF_RSP_ERROR);
}

static void greedy(void)
{
    for (u32 count = 19; count <= 20; count++) {
        for (u32 i = 0; i < count; i++)
            slot(liar.out_refs[0], 0, i + 1 < count ? NETTXF_more_data : 0, i ? 100 : 100 * count);
        tx_answered(count, NETIF_RSP_ERROR);
    }
}

static void bad_grants(void)
{
    grant_ref_t revoked = grant_page(liar.out[0]);
    grant_ref_t bad[] = {BAD_REF, 0xffffffffu, out_elsewhere, grant_gone(), revoked};

    grant_revoke(revoked);
    for (u32 i = 0; i < ARRAY_SIZE(bad); i++) {
        slot(bad[i], 0, 0, 100);
        tx_answered(1, NETIF_RSP_ERROR);
        /* The last of some pieces, and an honest frame behind it. */
        slot(liar.out_refs[0], 0, NETTXF_more_data, 300);
        slot(liar.out_refs[1], 0, NETTXF_more_data, 100);
        slot(bad[i], 0, 0, 100);
        tx_answered(3, NETIF_RSP_ERROR);
        tx_answered(put_frame(200), NETIF_RSP_OKAY);
        check_true("a frame behind it", receive(&peer, 200));
    }
}

static void longest(void)
{
    tx_answered(put_frame(LONGEST), NETIF_RSP_OKAY);
    check_true("the longest frame there is", receive(&peer, LONGEST));
    peer_sends(LONGEST);
    check_true("and back", receive(&liar, LONGEST));
}

static void one_id(void)
{
    for (u32 i = 0; i < 5; i++) {
        put_frame(64);
        ((struct netif_tx_request *)((u8 *)liar.rings[TX].shared + 64))[i].id = 7;
    }
    tx_answered(5, NETIF_RSP_OKAY);
}

static void addresses(void)
{
    static const u8 sources[][6] = {{0}, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, {1, 0, 0x5e, 0, 0, 1}, {6, 6, 6, 6, 6, 6}};

    for (u32 i = 0; i < ARRAY_SIZE(sources); i++) {
        put_frame(64);
        memcpy(liar.out[0] + 6, sources[i], 6);
        tx_answered(1, NETIF_RSP_OKAY);
        check_true("a frame from nowhere", receive(&peer, 64));
        /* To the address that we gave out as ours. */
        put_frame(64);
        memcpy(liar.out[0], sources[i], 6);
        tx_answered(1, NETIF_RSP_OKAY);
    }
}

static void scribbled_indexes(void)
{
    struct ring *tx = &liar.rings[TX];

    tx->shared[RSP_PROD] = 0x1234;
    tx->shared[REQ_EVENT] = 0x80000000u;
    put_frame(80);
    tx_push();
    check_true("a frame", receive(&peer, 80));
    check_hex("responses are counted where nobody lies", tx->shared[RSP_PROD], 1);
    tx->consumed = 1;
}

static void events_without_requests(void)
{
    for (u32 i = 0; i < 3000; i++)
        evtchn_send(liar.ports[i % RINGS]);
}

/* ---- multicast ---- */

static void multicast(u8 type, u32 number, int status)
{
    struct netif_extra_info *e;

    slot(0, 0, NETTXF_extra_info, 0);
    e = extra(type, 0);
    e->u.mcast.addr[0] = 1;
    e->u.mcast.addr[5] = (u8)number;
    tx_answered(2, status);
}

static void multicast_overflow(void)
{
    for (u32 i = 0; i < 200; i++)
        multicast(XEN_NETIF_EXTRA_TYPE_MCAST_ADD, i, i < 64 ? NETIF_RSP_OKAY : NETIF_RSP_ERROR);
    multicast(XEN_NETIF_EXTRA_TYPE_MCAST_ADD, 5, NETIF_RSP_OKAY);
    multicast(XEN_NETIF_EXTRA_TYPE_MCAST_DEL, 250, NETIF_RSP_OKAY);
    frontend_text("request-multicast-control", long_text());
    frontend_set("request-multicast-control", 1);
    frontend_remove("request-multicast-control");
}

/* ---- the receive ring ---- */

/* All that was posted goes to frames for us, so that what follows is what we post now. */
static void use_up(void)
{
    for (u32 i = 0; i < IN_PAGES; i++) {
        peer_sends(60);
        check_true("a page is used up", ring_answer(&liar.rings[RX]) != NULL);
    }
}

static void bad_pages(void)
{
    grant_ref_t revoked = grant_page(liar.in[0]);
    grant_ref_t bad[] = {BAD_REF, 0xffffffffu, in_readonly, in_elsewhere, grant_gone(), revoked};

    grant_revoke(revoked);
    use_up();
    memset(liar.in[0], 0x5a, PAGE_SIZE);
    for (u32 i = 0; i < ARRAY_SIZE(bad); i++) {
        struct netif_rx_response *a;

        post(&liar, (u16)(0x7000 + i), bad[i]);
        rx_push(&liar);
        peer_sends(60);
        a = ring_answer(&liar.rings[RX]);
        check_true("an error for the page", a && a->id == 0x7000 + i && a->status == NETIF_RSP_ERROR);
        check_true("the page as it was", liar.in[0][0] == 0x5a && liar.in[0][59] == 0x5a);
    }
    for (u16 i = 0; i < IN_PAGES; i++)
        post(&liar, i, liar.in_refs[i]);
    rx_push(&liar);
}

static void one_page_for_all(void)
{
    use_up();
    for (u16 i = 0; i < IN_PAGES; i++)
        post(&liar, 3, liar.in_refs[3]);
    rx_push(&liar);
    peer_sends(60);
    check_true("a frame", receive(&liar, 60));
    peer_sends(10000);
    for (u32 i = 0; i < 3; i++) {
        struct netif_rx_response *a = ring_answer(&liar.rings[RX]);

        check_true("pieces of a frame", a && a->id == 3 && a->status > 0);
    }
}

static void nothing_posted(void)
{
    use_up();
    /* The ring is empty: nobody waits for us. */
    for (u32 i = 0; i < 50; i++)
        peer_sends(60);
    for (u16 i = 0; i < IN_PAGES; i++)
        post(&liar, i, liar.in_refs[i]);
    rx_push(&liar);
}

/* ---- the control ring ---- */

static void control(void)
{
    enum { OK, NOT_SUPPORTED, INVALID, TOO_LONG };
    u32 *table = (u32 *)liar.out[1];
    grant_ref_t ref = liar.out_refs[1];

    for (u32 type = XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE; type < 65536; type += type < 20 ? 1 : 4999)
        ctrl_answered((u16)type, ref, 1, 0, NOT_SUPPORTED);
    ctrl_answered(XEN_NETIF_CTRL_TYPE_INVALID, 0, 0, 0, NOT_SUPPORTED);
    ctrl_answered(XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS, 16, 0, 0, INVALID);
    ctrl_answered(XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS, 0xffffffffu, 0, 0, INVALID);
    ctrl_answered(XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM, 2, 0, 0, INVALID);
    ctrl_answered(XEN_NETIF_CTRL_TYPE_SET_HASH_KEY, ref, 41, 0, TOO_LONG);
    ctrl_answered(XEN_NETIF_CTRL_TYPE_SET_HASH_KEY, ref, 0xffffffffu, 0, TOO_LONG);
    ctrl_answered(XEN_NETIF_CTRL_TYPE_SET_HASH_KEY, BAD_REF, 40, 0, INVALID);
    ctrl_answered(XEN_NETIF_CTRL_TYPE_SET_HASH_KEY, out_elsewhere, 40, 0, INVALID);
    ctrl_answered(XEN_NETIF_CTRL_TYPE_SET_HASH_KEY, ref, 0, 0, OK);
    ctrl_answered(XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE, 0, 0, 0, INVALID);
    ctrl_answered(XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE, 129, 0, 0, INVALID);
    ctrl_answered(XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE, 0xffffffffu, 0, 0, INVALID);
    ctrl_answered(XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE, 128, 0, 0, OK);
    memset(table, 0, PAGE_SIZE);
    ctrl_answered(XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING, ref, 129, 0, INVALID);
    ctrl_answered(XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING, ref, 1, 128, INVALID);
    ctrl_answered(XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING, ref, 2, 0xffffffffu, INVALID);
    ctrl_answered(XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING, ref, 0xffffffffu, 1, INVALID);
    ctrl_answered(XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING, BAD_REF, 128, 0, INVALID);
    ctrl_answered(XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING, ref, 128, 0, OK);
    table[127] = 1;
    ctrl_answered(XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING, ref, 128, 0, INVALID);
    table[127] = 0xffffffffu;
    ctrl_answered(XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING, ref, 128, 0, INVALID);
    ctrl_answered(XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS, 15, 0, 0, OK);
    ctrl_answered(XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM, XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ, 0, 0, OK);
}

/* ---- what happens to a connection ---- */

static void nodes_removed(void)
{
    frontend_remove("tx-ring-ref");
    frontend_remove("event-channel-tx");
    frontend_text("mac", "no address");
    frontend_text("mac", long_text());
    frontend_remove("mac");
    frontend_text("handle", "99");
}

static void rings_given_back(void)
{
    void *pages[2] = {alloc_pages(1), alloc_pages(1)};
    grant_ref_t refs[2] = {grant_page(pages[0]), grant_page(pages[1])};

    frontend_leave();
    net_nodes();
    frontend_set("tx-ring-ref", refs[0]);
    frontend_set("rx-ring-ref", refs[1]);
    frontend_state(XenbusStateInitialised);
    check_true("connected", frontend_served());
    for (u32 i = 0; i < 2; i++) {
        balloon_out(pages[i]);
        grant_revoke(refs[i]);
    }
    for (u32 i = 0; i < RINGS; i++)
        evtchn_send(liar.ports[i]);
    peer_sends(60);
}

static void ports_closed(void)
{
    put_frame(70);
    for (u32 i = 0; i < RINGS; i++)
        evtchn_close(liar.ports[i]);
    peer_sends(60);
    tx_push();
    for (u32 i = 0; i < RINGS; i++)
        liar.ports[i] = new_port();
}

static void one_ring(void)
{
    frontend_leave();
    net_nodes();
    for (u32 i = 0; i < 4; i++)
        liar.rings[TX].shared[i] = 0;
    frontend_set("rx-ring-ref", liar.ring_refs[TX]);
    frontend_state(XenbusStateInitialised);
    check_true("connected", frontend_served());
    put_frame(90);
    tx_push();
    check_true("a frame", receive(&peer, 90));
}

static const struct lie answers[] = {
    {"frames of 0 to 13 bytes", NULL, short_frames},
    {"pieces beyond the size, and beyond 65535", NULL, pieces_beyond_the_size},
    {"19 and 20 slots", NULL, greedy},
    {"grants that are none, another's, of no memory, revoked", NULL, bad_grants},
    {"frames of 65535 bytes", NULL, longest},
    {"one id for all", NULL, one_id},
    {"addresses of groups, of nobody, of others", NULL, addresses},
    {"rsp_prod and req_event written to", NULL, scribbled_indexes},
    {"events without requests", NULL, events_without_requests},
    {"more multicast addresses than there is room for", NULL, multicast_overflow},
    {"pages to receive into: none, read-only, another's, of no memory, revoked", NULL, bad_pages},
    {"one page for all that is received", NULL, one_page_for_all},
    {"no pages to receive into", NULL, nothing_posted},
    {"control messages", NULL, control},
    {"nodes changed while connected", NULL, nodes_removed},
    {"the rings' pages given back while connected", NULL, rings_given_back},
    {"event channels closed while connected", NULL, ports_closed},
    {"one page for both rings", NULL, one_ring},
};

void net_tell_answers(void)
{
    frontend_tell(answers, ARRAY_SIZE(answers));
    frontend_tell_states();
}
