/*
 * steady_net: an honest frontend of a network interface that sends frames for as long as the test
 * lets it, whatever happens to the network behind it.
 *
 * Purpose: no frame stays without an answer for ever, nor does the guest's store. It says when it is
 * kept waiting and when it goes on.
 * Blind spots: what comes out is for the test to look at.
 *
 * The test ends it by the node data/stop.
 *
 * Driven by: test_failing_host
 * Sources: liars/net_front.c
 * Sources: liars/net.h
 */
#include "liars/net.h"

const char test_title[] = "A network that fails";

#define UNDER_WAY 64u
/* Looks at the store without any answer until that counts as waiting. */
#define LOOKS 200u

static bool told(const char *node)
{
    char value[8];

    return xs_read(node, value, sizeof(value)) > 0;
}

void test_main(void)
{
    struct ring *tx = &liar.rings[TX];
    u32 answers = 0, looks = 0;
    bool waiting = false, begun = false, changed = false;

    frontend_init();
    net_init_alone();
    frontend_connect();
    while (!told("data/stop")) {
        struct netif_tx_response *a;

        while (tx->produced - tx->consumed < UNDER_WAY)
            put_frame(1000);
        tx_push();
        looks++;
        while ((a = ring_take(tx))) {
            check_signed("a frame's status", a->status, NETIF_RSP_OKAY);
            answers++;
            looks = 0;
        }
        if (!begun && answers > 100) {
            begun = true;
            printk("steady: begun\n");
        }
        if (waiting != (looks > LOOKS)) {
            waiting = looks > LOOKS;
            printk("steady: %s\n", waiting ? "kept waiting" : "goes on");
        }
        if (!changed && told("data/changed")) {
            changed = true;
            answers = 0;
        }
        if (changed && answers > 100) {
            printk("steady: 100 frames since\n");
            answers = 0;
        }
    }
    while (tx->consumed != tx->produced)
        if (!ring_answer(tx)) {
            failure("a frame is not answered");
            break;
        }
    check_true("connected still", frontend_served());
    frontend_leave();
    success();
}
