/*
 * Lies of a frontend of network interfaces that take two vCPUs. See net.h.
 */
#include "net.h"

enum { NOTHING, FRAMES, MESSAGES, FLIP, STOP, QUIT };

static volatile u32 job, rounds;
static volatile u32 answered_to_second;
static struct netif_tx_request *volatile flipped;

static void endless(u32 ring_number, u32 number)
{
    struct ring *ring = &liar.rings[ring_number];

    while (job == number) {
        while (ring->produced - READ_ONCE(ring->shared[RSP_PROD]) < ring->size) {
            if (ring_number == TX) {
                slot(liar.out_refs[0], 0, 0, 64);
            } else {
                struct xen_netif_ctrl_request *r = ring_put(ring);

                r->type = XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS;
            }
            /* Each at once: the backend may be about to find that there is no more. */
            barrier();
            WRITE_ONCE(ring->shared[REQ_PROD], ring->produced);
        }
        evtchn_send(ring->port);
        answered_to_second = READ_ONCE(ring->shared[RSP_PROD]);
    }
}

static void flip(void)
{
    while (job == FLIP) {
        struct netif_tx_request *r = flipped;

        if (r) {
            WRITE_ONCE(r->size, rounds & 1 ? 64 : 5);
            WRITE_ONCE(r->offset, rounds & 2 ? 0 : 4000);
            WRITE_ONCE(r->gref, rounds & 4 ? liar.out_refs[0] : BAD_REF);
        }
        rounds++;
    }
}

static void second(void)
{
    for (;;) {
        /* First, or the first job would be lost that comes while this begins. */
        while (!job)
            cpu_relax();
        endless(TX, FRAMES);
        endless(CTRL, MESSAGES);
        flip();
        if (job == QUIT)
            vcpu_op(VCPUOP_down, 1, NULL);
        job = NOTHING;
    }
}

static void begin_job(u32 number)
{
    rounds = 0;
    answered_to_second = 0;
    flipped = NULL;
    barrier();
    job = number;
}

static void end_job(void)
{
    job = STOP;
    while (job)
        cpu_relax();
}

static void without_end(u32 number, const char *what)
{
    u32 before;

    frontend_connect();
    begin_job(number);
    while (!answered_to_second)
        cpu_relax();
    before = answered_to_second;
    /* The store is served meanwhile, and so are the requests. */
    for (u32 reads = 0; reads < 200 || answered_to_second - before < 500; reads++)
        if (!frontend_served())
            break;
    check_true("served to the end", frontend_served());
    end_job();
    frontend_leave();
    printk("answered: %s without end\n", what);
}

static void set_flipped(struct netif_tx_request *r)
{
    u32 before = rounds;

    flipped = r;
    while (rounds - before < 2)
        cpu_relax();
}

static void frames_that_change(void)
{
    u32 okay = 0, errors = 0;

    frontend_connect();
    begin_job(FLIP);
    for (u32 i = 0; i < 300; i++) {
        struct netif_tx_response *a;

        put_frame(64);
        set_flipped((void *)((u8 *)liar.rings[TX].shared + 64 +
                             ((liar.rings[TX].produced - 1) & (liar.rings[TX].size - 1)) * liar.rings[TX].entry));
        tx_push();
        a = ring_answer(&liar.rings[TX]);
        set_flipped(NULL);
        if (!a) {
            failure("a frame that changes is not answered");
            break;
        }
        if (a->status == NETIF_RSP_OKAY)
            okay++;
        else if (a->status == NETIF_RSP_ERROR)
            errors++;
        else
            failure("status %d", a->status);
    }
    end_job();
    net_check();
    frontend_leave();
    printk("answered: frames that change: %u sent, %u errors\n", okay, errors);
}

void net_tell_races(void)
{
    if (vcpu_start(1, second))
        skip("no second vCPU");
    without_end(FRAMES, "frames");
    without_end(MESSAGES, "control messages");
    frames_that_change();
    job = QUIT;
}
