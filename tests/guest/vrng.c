/*
 * vrng: the driver of examples/vrng.py, the device that explains how devices are made.
 *
 * Purpose: as many requests at once as the ring holds, several times over; every page is filled
 * where it was asked for and nowhere else. With "lie" on the command line, one that crosses its page.
 * Blind spots: how random the numbers are.
 *
 * Driven by: test_examples
 */
#include "xenstore.h"

#define xen_mb() __sync_synchronize()
#define xen_rmb() barrier()
#define xen_wmb() barrier()
#include <xen/io/ring.h>

const char test_title[] = "Random numbers from an example";

struct vrng_request {
    u64 id;
    u32 ref;
    u16 offset, size;
};
struct vrng_response {
    u64 id;
    s32 status;
};
DEFINE_RING_TYPES(vrng, struct vrng_request, struct vrng_response);

#define FIRST_REF 20
#define SIZE 256

static const char home[] = "device/vrng/0";
static vrng_front_ring_t ring;
static u8 *pages;

static void ask(unsigned int i, u16 offset)
{
    *RING_GET_REQUEST(&ring, ring.req_prod_pvt) =
        (struct vrng_request){.id = i, .ref = FIRST_REF + i, .offset = offset, .size = SIZE};
    ring.req_prod_pvt++;
}

static void check_page(unsigned int i, u16 offset)
{
    u8 *page = pages + i * PAGE_SIZE;
    unsigned int outside = 0, zeros = 0;

    for (unsigned int at = 0; at < PAGE_SIZE; at++) {
        if (at >= offset && at < offset + (unsigned int)SIZE)
            zeros += !page[at];
        else
            outside += page[at];
        page[at] = 0;
    }
    /* Of 256 random bytes one is zero, on average. */
    check_true("filled where it was asked for", zeros < 32);
    check_hex("bytes elsewhere", outside, 0);
}

void test_main(void)
{
    char backend[64];
    evtchn_port_t port;
    vrng_sring_t *shared;
    unsigned int n;

    if (!xs_init() || xs_read("device/vrng/0/backend", backend, sizeof(backend)) <= 0)
        skip("no vrng device");
    grant_table_map(1);
    shared = alloc_pages(1);
    SHARED_RING_INIT(shared);
    FRONT_RING_INIT(&ring, shared, PAGE_SIZE);
    grant_access(8, 0, (ulong)shared >> PAGE_SHIFT, false);
    n = RING_SIZE(&ring);
    pages = alloc_pages(n);
    memset(pages, 0, n * PAGE_SIZE);
    for (unsigned int i = 0; i < n; i++)
        grant_access(FIRST_REF + i, 0, ((ulong)pages >> PAGE_SHIFT) + i, false);
    if (evtchn_alloc_unbound(DOMID_SELF, 0, &port))
        error("no event channel");
    check_hex("max-request-size", xs_number(backend, "max-request-size"), PAGE_SIZE);
    xs_set(home, "ring-ref", 8);
    xs_set(home, "event-channel", port);
    xs_set(home, "state", XenbusStateInitialised);
    if (!xs_wait(backend, "state", XenbusStateConnected))
        error("the backend's state is %u", xs_number(backend, "state"));
    if (cmdline_number("lie", 0)) {
        int notify;

        ask(0, PAGE_SIZE - 1);
        RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&ring, notify);
        if (notify)
            evtchn_send(port);
        check_true("cut off", xs_wait(backend, "state", XenbusStateClosing));
        success();
        return;
    }
    for (unsigned int round = 0; round < 5; round++) {
        unsigned int answered = 0, tries = 0;
        u16 offset = (u16)(round * 777);
        int notify;

        for (unsigned int i = 0; i < n; i++)
            ask(i, offset);
        RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&ring, notify);
        if (notify)
            evtchn_send(port);
        while (answered < n) {
            if (ring.rsp_cons == READ_ONCE(shared->rsp_prod)) {
                sched_op(SCHEDOP_yield, NULL);
                if (++tries > 100000)
                    error("%u of %u answers", answered, n);
                continue;
            }
            check_hex("status", (u32)RING_GET_RESPONSE(&ring, ring.rsp_cons)->status, 0);
            ring.rsp_cons++;
            answered++;
        }
        for (unsigned int i = 0; i < n; i++)
            check_page(i, offset);
    }
    xs_set(home, "state", XenbusStateClosed);
    check_true("closed", xs_wait(backend, "state", XenbusStateClosed));
    success();
}
