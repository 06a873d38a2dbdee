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
 * With endless=1 it does nothing but send frames, and has no end.
 *
 * Driven by: test_liar
 * Sources: liars/net*
 */
#include "liars/net.h"
#include "random.h"

const char test_title[] = "Lying frontends of network interfaces";

/* Slots of which most fields, but not all, are what they should be. */
static void shake(void)
{
    struct ring *tx = &liar.rings[TX];
    u32 count = 1 + random_below(12);

    tx->produced = tx->shared[RSP_PROD];
    for (u32 i = 0; i < count && random_below(10); i++) {
        u32 flags = random_below(12) ? random_below(2) : random_below(16);

        if (random_below(12))
            slot(random_below(30) ? liar.out_refs[random_below(OUT_PAGES)] : random_below(64),
                 random_below(20) ? 0 : random_below(4200), flags, random_below(20) ? random_below(500) : random_below(65536));
        else
            gso_extra((u8)random_below(3), (u16)random_below(2000), (u8)(random_below(8) == 0));
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
    frontend_vanish();
    success();
}
