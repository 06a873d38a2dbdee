/*
 * Lies of a frontend of disks that no driver may tell. See blk.h.
 */
#include "blk.h"

/* ---- lies in the nodes ---- */

TELL(ref_none, frontend_set("ring-ref", BAD_REF))
TELL(ref_readonly, frontend_set("ring-ref", ring_readonly))
TELL(ref_elsewhere, frontend_set("ring-ref", ring_elsewhere))
TELL(ref_gone, frontend_set("ring-ref", grant_gone()))
TELL(ref_33_bits, frontend_text("ring-ref", "4294967304"))
TELL(ref_negative, frontend_text("ring-ref", "-1"))
TELL(ref_long, frontend_text("ring-ref", long_text()))
TELL(ref_binary, frontend_text("ring-ref", "\xff\xfe"))
TELL(ref_missing, frontend_remove("ring-ref"))
TELL(order_5, frontend_set("ring-page-order", 5))
TELL(order_huge, frontend_text("ring-page-order", "4294967295"))
TELL(no_ring_pages, frontend_set("ring-page-order", 1))
TELL(two_of_four, frontend_set("ring-page-order", 2); frontend_set("ring-ref0", ring_refs[0]);
     frontend_set("ring-ref1", ring_refs[1]); frontend_set("ring-ref2", ring_refs[2]))
TELL(second_page_none, frontend_set("ring-page-order", 1); frontend_set("ring-ref0", ring_refs[0]);
     frontend_set("ring-ref1", BAD_REF))
TELL(port_none, frontend_set("event-channel", BAD_REF))
TELL(port_0, frontend_set("event-channel", 0))
TELL(port_closed, frontend_set("event-channel", closed_port))
TELL(port_of_console, frontend_set("event-channel", console_port))
TELL(port_text, frontend_text("event-channel", "\x1b[31mport\n"))
TELL(port_missing, frontend_remove("event-channel"))
TELL(protocol_none, frontend_text("protocol", "x86_99"))
TELL(protocol_long, frontend_text("protocol", long_text()))
TELL(queues_0, frontend_set("multi-queue-num-queues", 0))
TELL(queues_more, frontend_set("multi-queue-num-queues", frontend_offer("multi-queue-max-queues") + 1))
TELL(queues_text, frontend_text("multi-queue-num-queues", "two"))
TELL(queue_missing, frontend_set("multi-queue-num-queues", 2); frontend_set("queue-0/ring-ref", ring_refs[0]);
     frontend_set("queue-0/event-channel", port))
TELL(queues_one_port, queue_missing(); frontend_set("queue-1/ring-ref", ring_refs[1]);
     frontend_set("queue-1/event-channel", port))
TELL(persistent_2, frontend_set("feature-persistent", 2))
TELL(produced_before, ring.shared[REQ_PROD] = ring.size + 1)

#define LONG40 "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
#define NO_REF "grant not usable: there is no reference 57005 (status -3)"
#define NOT_OURS "grant not usable: flags 0x1 do not permit it (status -1)"
#define REVOKED "grant not usable: flags 0x0 do not permit it (status -1)"
#define READONLY "grant not usable: it is read-only (status -1)"

static const struct lie nodes_lies[] = {
    {"ring: a grant that is none", NO_REF, ref_none},
    {"ring: granted read-only", READONLY, ref_readonly},
    {"ring: granted to somebody else", NOT_OURS, ref_elsewhere},
    {"ring: a page that was given back", "grant not usable: guest frame 0x*", ref_gone},
    {"ring: a reference of 33 bits", "its node ring-ref is '4294967304', not 0 to 4294967295", ref_33_bits},
    {"ring: a negative reference", "its node ring-ref is '-1', not 0 to 4294967295", ref_negative},
    {"ring: a reference of long text", "its node ring-ref is '" LONG40 "', not 0 to 4294967295", ref_long},
    {"ring: a binary reference", "its node ring-ref is no text", ref_binary},
    {"ring: no reference", "its node ring-ref is missing", ref_missing},
    {"ring: more pages than offered", "its node ring-page-order is '5', not 0 to 4", order_5},
    {"ring: an order of 32 bits", "its node ring-page-order is '4294967295', not 0 to 4", order_huge},
    {"ring: two pages and no reference", "its node ring-ref0 is missing", no_ring_pages},
    {"ring: one page of four is missing", "its node ring-ref3 is missing", two_of_four},
    {"ring: one page of two is not granted", NO_REF, second_page_none},
    {"ring: too many requests before it is connected",
     "ring indexes that cannot be: 33 more requests in a ring of 32", produced_before},
    {"event channel: one that is none", "event channel 57005 is none that waits for us", port_none},
    {"event channel: 0", "its node event-channel is '0', not 1 to *", port_0},
    {"event channel: closed", "event channel * is none that waits for us", port_closed},
    {"event channel: the console's", "event channel * is none that waits for us", port_of_console},
    {"event channel: an escape sequence", "its node event-channel is '\\x1b[31mport\\n', not 1 to *", port_text},
    {"event channel: none", "its node event-channel is missing", port_missing},
    {"protocol: x86_99", "its protocol is 'x86_99'", protocol_none},
    {"protocol: long text", "its protocol is '" LONG40 "'", protocol_long},
    {"queues: none", "its node multi-queue-num-queues is '0', not 1 to 2", queues_0},
    {"queues: more than offered", "its node multi-queue-num-queues is '3', not 1 to 2", queues_more},
    {"queues: text", "its node multi-queue-num-queues is 'two', not 1 to 2", queues_text},
    {"queues: the second has no nodes", "its node queue-1/ring-ref is missing", queue_missing},
    {"queues: two with one event channel", "event channel * is none that waits for us", queues_one_port},
    {"persistent grants: 2", "its node feature-persistent is '2', not 0 to 1", persistent_2},
};

/* ---- lies on the ring that no driver may tell ---- */

static void second_segment(grant_ref_t ref, u8 operation)
{
    struct blkif_request *r = request(operation, 3, 0);

    r->seg[1].gref = ref;
    ring_push(&ring);
}

static void sectors_of(u8 first, u8 last, u8 operation)
{
    struct blkif_request *r = request(operation, 3, 0);

    r->seg[2].first_sect = first;
    r->seg[2].last_sect = last;
    ring_push(&ring);
}

static void indirect_segment(grant_ref_t ref, u8 first, u8 last)
{
    indirect_request(BLKIF_OP_READ, 20, 0);
    indirect[19] = (struct blkif_request_segment){ref, first, last};
    ring_push(&ring);
}

static void revoked(u8 operation)
{
    grant_ref_t ref = grant_page(data[0]);

    grant_revoke(ref);
    second_segment(ref, operation);
}

TELL(too_far, ring_lie(&ring, ring.size + 1))
TELL(far_ahead, ring_lie(&ring, 0x80000000u))
TELL(backwards, blk_check(); ring_lie(&ring, ring.produced - 1))
TELL(far_ahead_later, blk_check(); ring_lie(&ring, ring.produced + ring.size + 1))
TELL(segments_12, request(BLKIF_OP_READ, 12, 0); ring_push(&ring))
TELL(first_after_last, sectors_of(5, 4, BLKIF_OP_WRITE))
TELL(last_8, sectors_of(0, 8, BLKIF_OP_READ))
TELL(last_255, sectors_of(255, 255, BLKIF_OP_WRITE))
TELL(data_none, second_segment(BAD_REF, BLKIF_OP_READ))
TELL(data_last_ref, second_segment(0xffffffffu, BLKIF_OP_WRITE))
TELL(data_ro, second_segment(data_readonly, BLKIF_OP_READ))
TELL(data_not_ours, second_segment(data_elsewhere, BLKIF_OP_WRITE))
TELL(data_gone, second_segment(grant_gone(), BLKIF_OP_READ))
TELL(data_revoked, revoked(BLKIF_OP_WRITE))
TELL(data_in_flush, second_segment(BAD_REF, BLKIF_OP_FLUSH_DISKCACHE))
TELL(indirect_0, indirect_request(BLKIF_OP_READ, 0, 0); ring_push(&ring))
TELL(indirect_257, indirect_request(BLKIF_OP_READ, 257, 0); ring_push(&ring))
TELL(indirect_65535, indirect_request(BLKIF_OP_WRITE, 65535, 0); ring_push(&ring))
TELL(indirect_page, indirect_request(BLKIF_OP_READ, 1, 0)->indirect_grefs[0] = BAD_REF; ring_push(&ring))
TELL(indirect_gone, indirect_request(BLKIF_OP_READ, 1, 0)->indirect_grefs[0] = grant_gone(); ring_push(&ring))
TELL(indirect_indirect, indirect_request(BLKIF_OP_INDIRECT, 1, 0); ring_push(&ring))
TELL(indirect_flush, indirect_request(BLKIF_OP_FLUSH_DISKCACHE, 1, 0); ring_push(&ring))
TELL(indirect_discard, indirect_request(BLKIF_OP_DISCARD, 1, 0); ring_push(&ring))
TELL(indirect_none, indirect_segment(BAD_REF, 0, LAST))
TELL(indirect_ro, indirect_segment(data_readonly, 0, LAST))
TELL(indirect_sectors, indirect_segment(refs[0], 3, 200))

static const struct lie lies[] = {
    {"req_prod: one more than the ring holds", "ring indexes that cannot be: 33 more requests in a ring of 32",
     too_far},
    {"req_prod: far ahead", "ring indexes that cannot be: 2147483648 more requests in a ring of 32", far_ahead},
    {"req_prod: backwards", "ring indexes that cannot be: 4294967295 more requests in a ring of 32", backwards},
    {"req_prod: too far, after honest work", "ring indexes that cannot be: 33 more requests in a ring of 32",
     far_ahead_later},
    {"12 segments", "a request of 12 segments", segments_12},
    {"first_sect after last_sect", "a segment of sectors 5 to 4 of a page", first_after_last},
    {"last_sect: 8", "a segment of sectors 0 to 8 of a page", last_8},
    {"last_sect: 255", "a segment of sectors 255 to 255 of a page", last_255},
    {"data: a grant that is none", NO_REF, data_none},
    {"data: the last of all references", "grant not usable: there is no reference 4294967295 (status -3)",
     data_last_ref},
    {"data: read into what is granted read-only", READONLY, data_ro},
    {"data: granted to somebody else", NOT_OURS, data_not_ours},
    {"data: a page that was given back", "grant not usable: guest frame 0x*", data_gone},
    {"data: a grant that was revoked", REVOKED, data_revoked},
    {"data: of a flush, a grant that is none", NO_REF, data_in_flush},
    {"indirect: no segments", "an indirect request of 0 segments", indirect_0},
    {"indirect: 257 segments", "an indirect request of 257 segments", indirect_257},
    {"indirect: 65535 segments", "an indirect request of 65535 segments", indirect_65535},
    {"indirect: segments in a page that is not granted", NO_REF, indirect_page},
    {"indirect: segments in a page that was given back", "grant not usable: guest frame 0x*", indirect_gone},
    {"indirect: in indirect", "an indirect request for operation 6", indirect_indirect},
    {"indirect: a flush", "an indirect request for operation 3", indirect_flush},
    {"indirect: a discard", "an indirect request for operation 5", indirect_discard},
    {"indirect: a segment's grant is none", NO_REF, indirect_none},
    {"indirect: read into what is granted read-only", READONLY, indirect_ro},
    {"indirect: sectors of a segment", "a segment of sectors 3 to 200 of a page", indirect_sectors},
};

void blk_tell_lies(void)
{
    frontend_tell_nodes(nodes_lies, ARRAY_SIZE(nodes_lies));
    frontend_tell(lies, ARRAY_SIZE(lies));
    persistent = true;
    frontend_tell(lies, ARRAY_SIZE(lies));
    persistent = false;
    frontend_next();
}
