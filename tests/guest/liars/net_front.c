/*
 * The honest part of a frontend of network interfaces, and the peer. Facts: xen/io/netif.h. See
 * net.h.
 */
#include "net.h"

/* For local experiments (IEEE 802). */
#define ETHERTYPE 0x88b5u
#define HEADER 14u

struct nic liar, peer;
grant_ref_t ring_readonly, ring_elsewhere, out_elsewhere, in_readonly, in_elsewhere;
evtchn_port_t closed_port;

static struct nic *connecting;
static u16 frame_number;

static const u32 entries[RINGS] = {
    sizeof(union netif_tx_sring_entry), sizeof(union netif_rx_sring_entry), sizeof(union xen_netif_ctrl_sring_entry),
};
static const char *const ref_nodes[RINGS] = {"tx-ring-ref", "rx-ring-ref", "ctrl-ring-ref"};
static const char *const port_nodes[RINGS] = {"event-channel-tx", "event-channel-rx", "event-channel-ctrl"};

static void make(struct nic *nic)
{
    for (u32 i = 0; i < RINGS; i++) {
        nic->ring_pages[i] = alloc_pages(1);
        nic->ring_refs[i] = grant_page(nic->ring_pages[i]);
        nic->ports[i] = new_port();
    }
    for (u32 i = 0; i < OUT_PAGES; i++) {
        nic->out[i] = alloc_pages(1);
        nic->out_refs[i] = grant_readonly(nic->out[i]);
    }
    for (u32 i = 0; i < IN_PAGES; i++) {
        nic->in[i] = alloc_pages(1);
        nic->in_refs[i] = grant_page(nic->in[i]);
    }
}

void net_nodes(void)
{
    static const char *const optional[] = {
        "event-channel", "multi-queue-num-queues", "queue-0", "queue-1", "xdp-headroom", "request-multicast-control",
        "feature-no-csum-offload",
    };
    static const char *const features[] = {
        "request-rx-copy", "feature-sg", "feature-gso-tcpv4", "feature-gso-tcpv6", "feature-ipv6-csum-offload",
    };
    struct nic *nic = connecting;

    for (u32 i = 0; i < ARRAY_SIZE(optional); i++)
        frontend_remove(optional[i]);
    for (u32 i = 0; i < ARRAY_SIZE(features); i++)
        frontend_set(features[i], 1);
    for (u32 i = 0; i < RINGS; i++) {
        ring_init(&nic->rings[i], nic->ring_pages[i], 1, entries[i], nic->ports[i]);
        frontend_set(ref_nodes[i], nic->ring_refs[i]);
        frontend_set(port_nodes[i], nic->ports[i]);
    }
    for (u16 i = 0; i < IN_PAGES; i++)
        post(nic, i, nic->in_refs[i]);
    nic->rings[RX].shared[REQ_PROD] = nic->rings[RX].produced;
}

const struct frontend net_frontend = {"vif", 0, 1, net_nodes, net_check};

void net_init_alone(void)
{
    make(&liar);
    connecting = &liar;
    frontend_begin(&net_frontend);
}

void net_init(void)
{
    make(&peer);
    connecting = &peer;
    frontend_begin(&net_frontend);
    frontend_connect();
    frontend_look_on();
    net_init_alone();
    ring_readonly = grant_readonly(liar.ring_pages[TX]);
    ring_elsewhere = grant_elsewhere(liar.ring_pages[TX]);
    out_elsewhere = grant_elsewhere(liar.out[0]);
    in_readonly = grant_readonly(liar.in[0]);
    in_elsewhere = grant_elsewhere(liar.in[0]);
    closed_port = new_port();
    evtchn_close(closed_port);
    frontend_next();
}

/* ---- sending ---- */

static struct netif_tx_request *put_slot(struct nic *nic, grant_ref_t ref, u32 offset, u32 flags, u32 size)
{
    struct netif_tx_request *r = ring_put(&nic->rings[TX]);

    *r = (struct netif_tx_request){ref, (u16)offset, (u16)flags, nic->next_id++, (u16)size};
    return r;
}

struct netif_tx_request *slot(grant_ref_t ref, u32 offset, u32 flags, u32 size)
{
    return put_slot(&liar, ref, offset, flags, size);
}

struct netif_extra_info *extra(u8 type, u8 flags)
{
    struct netif_extra_info *e = ring_put(&liar.rings[TX]);

    e->type = type;
    e->flags = flags;
    return e;
}

struct netif_extra_info *gso_extra(u8 type, u16 size, u8 flags)
{
    struct netif_extra_info *e = extra(XEN_NETIF_EXTRA_TYPE_GSO, flags);

    e->u.gso.type = type;
    e->u.gso.size = size;
    return e;
}

void tx_push(void)
{
    ring_push(&liar.rings[TX]);
}

void tx_answered(u32 count, int status)
{
    tx_push();
    while (count--) {
        struct netif_tx_response *a = ring_answer(&liar.rings[TX]);

        if (!a) {
            failure("%u slots are not answered", count + 1);
            return;
        }
        if (a->status != NETIF_RSP_NULL)
            check_signed("status of a slot", a->status, status);
    }
}

static u8 pattern(u32 at)
{
    return (u8)(at * 7 + frame_number);
}

static u32 put_frame_of(struct nic *nic, u32 size)
{
    u32 slots = 0;

    frame_number++;
    for (u32 at = HEADER; at < size; at++)
        nic->out[at / PAGE_SIZE][at % PAGE_SIZE] = pattern(at);
    /* To everybody: a switch makes nobody wait for such a frame. */
    memset(nic->out[0], 0xff, 6);
    memset(nic->out[0] + 6, nic == &liar ? 2 : 6, 6);
    nic->out[0][12] = ETHERTYPE >> 8;
    nic->out[0][13] = ETHERTYPE & 0xff;
    for (u32 at = 0; at < size; at += PAGE_SIZE, slots++) {
        u32 left = size - at;

        put_slot(nic, nic->out_refs[slots], 0, left > PAGE_SIZE ? NETTXF_more_data : 0,
                 !at ? size : left > PAGE_SIZE ? PAGE_SIZE : left);
    }
    return slots;
}

u32 put_frame(u32 size)
{
    return put_frame_of(&liar, size);
}

/* ---- receiving ---- */

void post(struct nic *nic, u16 id, grant_ref_t ref)
{
    struct netif_rx_request *r = ring_put(&nic->rings[RX]);

    r->id = id;
    r->gref = ref;
}

void rx_push(struct nic *nic)
{
    ring_push(&nic->rings[RX]);
}

static bool is_ours(const u8 *data, u32 from, u32 size)
{
    for (u32 i = from ? 0 : HEADER; i < size; i++)
        if (data[i] != pattern(from + i))
            return false;
    return from || (data[12] == ETHERTYPE >> 8 && data[13] == (ETHERTYPE & 0xff));
}

bool receive(struct nic *nic, u32 size)
{
    u32 got = 0;
    bool good = true;

    for (;;) {
        struct netif_rx_response *a = ring_answer(&nic->rings[RX]), answer;
        bool more;

        if (!a)
            return false;
        answer = *a;
        for (more = answer.flags & NETRXF_extra_info; more;) {
            struct netif_extra_info *e = ring_answer(&nic->rings[RX]);

            more = e && e->flags & XEN_NETIF_EXTRA_FLAG_MORE;
        }
        if (answer.status < 0 || answer.id >= IN_PAGES) {
            good = false;
        } else {
            good = good && is_ours(nic->in[answer.id] + answer.offset, got, (u32)answer.status);
            got += (u32)answer.status;
        }
        if (answer.id < IN_PAGES) {
            post(nic, answer.id, nic->in_refs[answer.id]);
            rx_push(nic);
        }
        if (answer.flags & NETRXF_more_data)
            continue;
        if (good && got == size)
            return true;
        got = 0;
        good = true;
    }
}

void peer_sends(u32 size)
{
    u32 count = put_frame_of(&peer, size);

    ring_push(&peer.rings[TX]);
    while (count--) {
        struct netif_tx_response *a = ring_answer(&peer.rings[TX]);

        /* One that is cut off does not hear of it. */
        if (a)
            check_signed("the peer's frame", a->status, NETIF_RSP_OKAY);
        else
            peer.rings[TX].consumed++;
    }
}

/* Takes what came and was not waited for: a frame to everybody is lost where there is no room. */
static void drain(struct nic *nic)
{
    struct ring *rx = &nic->rings[RX];
    struct netif_rx_response *a;

    while ((a = ring_take(rx))) {
        u16 id = a->id;

        if (id < IN_PAGES)
            post(nic, id, nic->in_refs[id]);
    }
    rx_push(nic);
}

void net_check(void)
{
    drain(&peer);
    tx_answered(put_frame(100), NETIF_RSP_OKAY);
    check_true("a frame from the liar", receive(&peer, 100));
    peer_sends(60);
    check_true("a frame from the peer", receive(&liar, 60));
}

/* Where it goes out, the test looks. */
static void check_outside(void)
{
    tx_answered(put_frame(100), NETIF_RSP_OKAY);
}

const struct frontend net_outside = {"vif", 100, 1, net_nodes, check_outside};

/* ---- the control ring ---- */

void ctrl_answered(u16 type, u32 a, u32 b, u32 c, u32 status)
{
    struct ring *ring = &liar.rings[CTRL];
    struct xen_netif_ctrl_request *r = ring_put(ring);
    struct xen_netif_ctrl_response *answer;

    *r = (struct xen_netif_ctrl_request){liar.next_id, type, {a, b, c}};
    ring_push(ring);
    answer = ring_answer(ring);
    if (!answer) {
        failure("control message %u is not answered", type);
        return;
    }
    check_hex("its id", answer->id, liar.next_id++);
    check_hex("its type", answer->type, type);
    check_hex("its status", answer->status, status);
}
