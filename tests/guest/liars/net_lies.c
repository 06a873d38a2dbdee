/*
 * Lies of a frontend of network interfaces that no driver may tell. See net.h.
 */
#include "net.h"

/* ---- lies in the nodes ---- */

TELL(copy_0, frontend_set("request-rx-copy", 0))
TELL(copy_none, frontend_remove("request-rx-copy"))
TELL(copy_text, frontend_text("request-rx-copy", "yes"))
TELL(tx_none, frontend_set("tx-ring-ref", BAD_REF))
TELL(tx_readonly, frontend_set("tx-ring-ref", ring_readonly))
TELL(tx_elsewhere, frontend_set("tx-ring-ref", ring_elsewhere))
TELL(tx_gone, frontend_set("tx-ring-ref", grant_gone()))
TELL(tx_text, frontend_text("tx-ring-ref", long_text()))
TELL(tx_binary, frontend_text("tx-ring-ref", "\x80"))
TELL(tx_missing, frontend_remove("tx-ring-ref"))
TELL(rx_none, frontend_set("rx-ring-ref", BAD_REF))
TELL(rx_readonly, frontend_set("rx-ring-ref", ring_readonly))
TELL(rx_missing, frontend_remove("rx-ring-ref"))
TELL(tx_port_none, frontend_set("event-channel-tx", BAD_REF))
TELL(tx_port_0, frontend_set("event-channel-tx", 0))
TELL(tx_port_huge, frontend_text("event-channel-tx", "4294967295"))
TELL(rx_port_closed, frontend_set("event-channel-rx", closed_port))
TELL(rx_port_console, frontend_set("event-channel-rx", console_port))
TELL(rx_port_missing, frontend_remove("event-channel-rx"))
TELL(ports_same, frontend_set("event-channel-rx", liar.ports[TX]))
TELL(ports_none, frontend_remove("event-channel-tx"); frontend_remove("event-channel-rx"))
TELL(port_shared, ports_none(); frontend_text("event-channel", "shared"))
TELL(queues_0, frontend_set("multi-queue-num-queues", 0))
TELL(queues_more, frontend_set("multi-queue-num-queues", frontend_offer("multi-queue-max-queues") + 1))
TELL(queues_text, frontend_text("multi-queue-num-queues", "2 "))
TELL(queue_missing, frontend_set("multi-queue-num-queues", 2))
TELL(queues_same_ports, queue_missing(); for (u32 i = 0; i < 2; i++) {
    const char *name = i ? "queue-1" : "queue-0";
    char path[32];
    xs_format(path, sizeof(path), "%s/tx-ring-ref", name);
    frontend_set(path, liar.ring_refs[TX]);
    xs_format(path, sizeof(path), "%s/rx-ring-ref", name);
    frontend_set(path, liar.ring_refs[RX]);
    xs_format(path, sizeof(path), "%s/event-channel", name);
    frontend_set(path, liar.ports[TX]);
})
TELL(ctrl_none, frontend_set("ctrl-ring-ref", BAD_REF))
TELL(ctrl_port_missing, frontend_remove("event-channel-ctrl"))
TELL(ctrl_port_same, frontend_set("event-channel-tx", liar.ports[CTRL]))
TELL(sg_2, frontend_set("feature-sg", 2))
TELL(gso_text, frontend_text("feature-gso-tcpv4", "on"))
TELL(csum_7, frontend_set("feature-no-csum-offload", 7))
TELL(headroom, frontend_set("xdp-headroom", 4096))
TELL(tx_before, liar.rings[TX].shared[REQ_PROD] = 257)
TELL(rx_before, liar.rings[RX].shared[REQ_PROD] = 0x80000000u)
TELL(ctrl_before, liar.rings[CTRL].shared[REQ_PROD] = 0xffffffffu)

#define LONG40 "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
#define NO_REF "grant not usable: there is no reference 57005 (status -3)"
#define READONLY "grant not usable: it is read-only (status -1)"
#define NO_PORT "event channel * is none that waits for us"
#define INDEXES(more, size) "ring indexes that cannot be: " more " more requests in a ring of " size

static const struct lie nodes_lies[] = {
    {"nodes: pages flipped, not copied", "it wants pages flipped, not copied", copy_0},
    {"nodes: nothing about copying", "it wants pages flipped, not copied", copy_none},
    {"nodes: text about copying", "its node request-rx-copy is 'yes', not 0 to 1", copy_text},
    {"ring: a grant that is none", NO_REF, tx_none},
    {"ring: granted read-only", READONLY, tx_readonly},
    {"ring: granted to somebody else", "grant not usable: flags 0x1 do not permit it (status -1)", tx_elsewhere},
    {"ring: a page that was given back", "grant not usable: guest frame 0x* is no memory (status -9)", tx_gone},
    {"ring: long text", "its node tx-ring-ref is '" LONG40 "', not 0 to 4294967295", tx_text},
    {"ring: binary", "its node tx-ring-ref is no text", tx_binary},
    {"ring: no reference", "its node tx-ring-ref is missing", tx_missing},
    {"receive ring: a grant that is none", NO_REF, rx_none},
    {"receive ring: granted read-only", READONLY, rx_readonly},
    {"receive ring: no reference", "its node rx-ring-ref is missing", rx_missing},
    {"event channel: one that is none", NO_PORT, tx_port_none},
    {"event channel: 0", "its node event-channel-tx is '0', not 1 to 131071", tx_port_0},
    {"event channel: 32 bits", "its node event-channel-tx is '4294967295', not 1 to 131071", tx_port_huge},
    {"event channel: closed", NO_PORT, rx_port_closed},
    {"event channel: the console's", NO_PORT, rx_port_console},
    {"event channel: split, and one is missing", "its node event-channel-rx is missing", rx_port_missing},
    {"event channel: split, and both are one", NO_PORT, ports_same},
    {"event channel: none at all", "its node event-channel-tx is missing", ports_none},
    {"event channel: text", "its node event-channel is 'shared', not 1 to 131071", port_shared},
    {"queues: none", "its node multi-queue-num-queues is '0', not 1 to 2", queues_0},
    {"queues: more than offered", "its node multi-queue-num-queues is '3', not 1 to 2", queues_more},
    {"queues: text", "its node multi-queue-num-queues is '2 ', not 1 to 2", queues_text},
    {"queues: two, and no nodes of them", "its node queue-0/tx-ring-ref is missing", queue_missing},
    {"queues: two with one event channel", NO_PORT, queues_same_ports},
    {"control ring: a grant that is none", NO_REF, ctrl_none},
    {"control ring: no event channel", "its node event-channel-ctrl is missing", ctrl_port_missing},
    {"control ring: another ring's event channel", NO_PORT, ctrl_port_same},
    {"feature-sg: 2", "its node feature-sg is '2', not 0 to 1", sg_2},
    {"feature-gso-tcpv4: text", "its node feature-gso-tcpv4 is 'on', not 0 to 1", gso_text},
    {"feature-no-csum-offload: 7", "its node feature-no-csum-offload is '7', not 0 to 1", csum_7},
    {"xdp-headroom: a page", "its node xdp-headroom is '4096', not 0 to 512", headroom},
    {"ring: too many requests before it is connected", INDEXES("257", "256"), tx_before},
    {"receive ring: too many requests before it is connected", INDEXES("2147483648", "256"), rx_before},
    {"control ring: too many requests before it is connected", INDEXES("4294967295", "*"), ctrl_before},
};

/* ---- lies on the rings ---- */

static void more_without_end(u32 count)
{
    for (u32 i = 0; i < count; i++)
        slot(liar.out_refs[0], 0, NETTXF_more_data, i ? 10 : 60000);
    tx_push();
}

static void slots(u32 count)
{
    for (u32 i = 0; i < count; i++)
        slot(liar.out_refs[0], 0, i + 1 < count ? NETTXF_more_data : 0, i ? 100 : 100 * count);
    tx_push();
}

static void extras_without_end(u32 count)
{
    slot(liar.out_refs[0], 0, NETTXF_extra_info, 100);
    for (u32 i = 1; i < count; i++)
        gso_extra(XEN_NETIF_GSO_TYPE_TCPV4, 1000, XEN_NETIF_EXTRA_FLAG_MORE);
    tx_push();
}

static void extra_of(u8 type, u8 flags)
{
    slot(liar.out_refs[0], 0, NETTXF_extra_info, 100);
    extra(type, flags);
    slot(liar.out_refs[0], 0, 0, 100);
    tx_push();
}

static void gso_of(u8 type, u16 size)
{
    slot(liar.out_refs[0], 0, NETTXF_extra_info, 100);
    gso_extra(type, size, 0);
    tx_push();
}

static void second_piece(u32 offset, u32 size)
{
    slot(liar.out_refs[0], 0, NETTXF_more_data, 60000);
    slot(liar.out_refs[1], offset, 0, size);
    tx_push();
}

/* A lie about the receive ring is found when there is a frame for it. */
static void rx_lie(u32 produced)
{
    ring_lie(&liar.rings[RX], produced);
    peer_sends(60);
}

TELL(tx_too_far, ring_lie(&liar.rings[TX], 257))
TELL(tx_far_ahead, ring_lie(&liar.rings[TX], 0x80000000u))
TELL(tx_backwards, net_check(); ring_lie(&liar.rings[TX], 0))
TELL(rx_too_far, rx_lie(257))
TELL(rx_backwards, net_check(); rx_lie(0))
TELL(rx_far_ahead, rx_lie(0xffff0000u))
TELL(ctrl_far_ahead, ring_lie(&liar.rings[CTRL], 0x7fffffffu))
TELL(leaves_page, slot(liar.out_refs[0], 4095, 0, 14); tx_push())
TELL(leaves_page_far, slot(liar.out_refs[0], 65535, 0, 65535); tx_push())
TELL(one_slot_of_two_pages, slot(liar.out_refs[0], 0, 0, 4097); tx_push())
TELL(second_leaves_page, second_piece(4000, 97))
TELL(second_leaves_page_far, second_piece(65535, 1))
TELL(rest_leaves_page, second_piece(0, 100))
TELL(no_end, more_without_end(1))
TELL(no_end_20, more_without_end(20))
TELL(no_end_256, more_without_end(256))
TELL(slots_21, slots(21))
TELL(slots_256, slots(256))
TELL(extra_missing, slot(liar.out_refs[0], 0, NETTXF_extra_info, 100); tx_push())
TELL(extras_2, extras_without_end(2))
TELL(extras_256, extras_without_end(256))
TELL(extra_0, extra_of(XEN_NETIF_EXTRA_TYPE_NONE, 0))
TELL(extra_5, extra_of(XEN_NETIF_EXTRA_TYPE_MAX, 0))
TELL(extra_255, extra_of(255, 255))
TELL(gso_0, gso_of(XEN_NETIF_GSO_TYPE_TCPV4, 0))
TELL(gso_none, gso_of(XEN_NETIF_GSO_TYPE_NONE, 1000))
TELL(gso_3, gso_of(3, 1000))
TELL(gso_255, gso_of(255, 1000))
TELL(headroom_later, frontend_set("xdp-headroom", 5000); frontend_state(XenbusStateReconfiguring))

static const struct lie lies[] = {
    {"req_prod: one more than the ring holds", INDEXES("257", "256"), tx_too_far},
    {"req_prod: far ahead", INDEXES("2147483648", "256"), tx_far_ahead},
    {"req_prod: backwards", INDEXES("4294967295", "256"), tx_backwards},
    {"receive ring: req_prod, one more than the ring holds", INDEXES("257", "256"), rx_too_far},
    {"receive ring: req_prod backwards", INDEXES("4294967295", "256"), rx_backwards},
    {"receive ring: req_prod far ahead", INDEXES("4294901760", "256"), rx_far_ahead},
    {"control ring: req_prod far ahead", INDEXES("2147483647", "*"), ctrl_far_ahead},
    {"a piece that leaves its page", "a piece of 14 bytes at 4095 leaves its page", leaves_page},
    {"a piece that leaves its page by far", "a piece of 65535 bytes at 65535 leaves its page", leaves_page_far},
    {"two pages in one slot", "a piece of 4097 bytes at 0 leaves its page", one_slot_of_two_pages},
    {"a second piece that leaves its page", "a piece of 97 bytes at 4000 leaves its page", second_leaves_page},
    {"a second piece beyond its page", "a piece of 1 bytes at 65535 leaves its page", second_leaves_page_far},
    {"the pieces' sum short of the size", "a piece of 59900 bytes at 0 leaves its page", rest_leaves_page},
    {"more_data, and no more", "a packet on its transmit ring has no end", no_end},
    {"more_data 20 times, and no more", "a packet on its transmit ring has no end", no_end_20},
    {"more_data without end", "a packet of more than 20 slots", no_end_256},
    {"21 slots", "a packet of more than 20 slots", slots_21},
    {"a ring full of one packet", "a packet of more than 20 slots", slots_256},
    {"extra_info, and none", "extra information is missing", extra_missing},
    {"extra information with more of it, and no more", "extra information is missing", extras_2},
    {"extra information without end", "extra information is missing", extras_256},
    {"extra information of type 0", "extra information of type 0", extra_0},
    {"extra information of type 5", "extra information of type 5", extra_5},
    {"extra information of type 255", "extra information of type 255", extra_255},
    {"GSO of size 0", "a GSO size of 0", gso_0},
    {"GSO of type 0", "a GSO type of 0", gso_none},
    {"GSO of type 3", "a GSO type of 3", gso_3},
    {"GSO of type 255", "a GSO type of 255", gso_255},
    {"xdp-headroom of 5000 while connected", "its node xdp-headroom is '5000', not 0 to 512", headroom_later},
};

void net_tell_lies(void)
{
    frontend_tell_nodes(nodes_lies, ARRAY_SIZE(nodes_lies));
    frontend_tell(lies, ARRAY_SIZE(lies));
    frontend_next();
}
