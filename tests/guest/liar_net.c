/*
 * liar_net: a frontend of network interfaces that breaks the protocol of xen/io/netif.h from inside.
 *
 * Purpose: each lie on the list ends in the state Closing of that interface, or is answered with an
 * error; then an honest driver is served again, and an honest interface on the same link gets and
 * sends frames all along. With a second vCPU: slots that change while they are read, and frames and
 * control messages without end.
 * Blind spots: what other domains notice.
 *
 * The first interface is the honest one; the liar uses up those after it, since the host says only
 * so much about each: ten in all. The frames of number 100 are finished before they go out.
 *
 * With outside=1 random words also go to number 100.
 * With endless=1 it does nothing but send frames, and has no end.
 *
 * Driven by: test_liar
 * Sources: liars/net*
 */
#include "liars/net.h"
#include "random.h"

const char test_title[] = "Lying frontends of network interfaces";

/* A frame that may look like IPv4 or IPv6 with TCP or UDP, and then not quite. */
static void random_headers(u8 *frame)
{
    static const u8 protocols[] = {6, 17, 1, 0, 43, 44, 60};

    for (u32 i = 0; i < 128; i++)
        frame[i] = (u8)(random_below(3) ? 0 : random_u64());
    if (!random_below(8))
        return;
    frame[12] = random_below(2) ? 0x08 : 0x86;
    frame[13] = frame[12] == 0x08 ? 0 : 0xdd;
    frame[14] = (u8)((frame[12] == 0x08 ? 0x45 : 0x60) + (random_below(4) ? 0 : random_below(16)));
    frame[20] = protocols[random_below(ARRAY_SIZE(protocols))];
    frame[23] = protocols[random_below(ARRAY_SIZE(protocols))];
    frame[46] = (u8)(random_below(16) << 4);
}

/* Slots of which most fields, but not all, are what they should be. */
static void shake(void)
{
    struct ring *tx = &liar.rings[TX];
    u32 count = 1 + random_below(12);

    random_headers(liar.out[0]);
    tx->produced = tx->shared[RSP_PROD];
    for (u32 i = 0; i < count && random_below(10); i++) {
        u32 flags = random_below(12) ? random_below(2) : random_below(16);
        bool gso = !random_below(4) && i + 1 < count;

        slot(random_below(30) ? liar.out_refs[random_below(2)] : random_below(64),
             random_below(20) ? 0 : random_below(4200), gso ? NETTXF_csum_blank | NETTXF_extra_info : flags,
             random_below(40) ? random_below(4096) : random_below(65536));
        if (gso) {
            gso_extra((u8)(random_below(40) ? 1 + random_below(2) : random_below(256)), (u16)random_below(2000),
                      (u8)(random_below(20) == 0));
            i++;
        }
    }
    ring_lie(tx, tx->shared[RSP_PROD] + count);
    ring_lie(&liar.rings[CTRL], liar.rings[CTRL].shared[RSP_PROD] + random_below(8));
    if (random_below(2))
        ring_lie(&liar.rings[RX], liar.rings[RX].shared[RSP_PROD] + random_below(200));
    peer_sends(60 + random_below(9000));
}

static void never_end(void)
{
    struct ring *tx = &liar.rings[TX];

    net_init_alone();
    frontend_connect();
    printk("begun\n");
    for (;;) {
        while (tx->produced - READ_ONCE(tx->shared[RSP_PROD]) < tx->size)
            slot(liar.out_refs[0], 0, 0, 4096);
        tx_push();
    }
}

void test_main(void)
{
    frontend_init();
    if (cmdline_number("endless", 0))
        never_end();
    net_init();
    net_tell_lies();
    net_tell_answers();
    net_tell_races();
    frontend_next();
    frontend_scribble((void *const *)liar.ring_pages, RINGS, shake);
    frontend_begin(&net_outside);
    net_tell_unfinished();
    if (cmdline_number("outside", 0))
        frontend_scribble((void *const *)liar.ring_pages, RINGS, shake);
    frontend_vanish();
    success();
}
