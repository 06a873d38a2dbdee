/*
 * Console output: the PV console ring of HVM_PARAM_CONSOLE_PFN, or port 0xe9 where there is none
 * or where nobody empties it. Facts: xen/io/console.h.
 */
#include "guest.h"

#define DEBUG_PORT 0xe9
/* Yields before a full ring counts as abandoned. */
#define PATIENCE 20000

volatile struct xencons_interface *console_ring;
evtchn_port_t console_port;

static bool unsent;

void console_init(void)
{
    u64 pfn = 0, port = 0;

    if (hvm_param_get(HVM_PARAM_CONSOLE_PFN, &pfn) || hvm_param_get(HVM_PARAM_CONSOLE_EVTCHN, &port) ||
        !pfn || !port)
        return;
    console_ring = (volatile struct xencons_interface *)(ulong)(pfn << PAGE_SHIFT);
    console_port = (evtchn_port_t)port;
}

static void debug_write(const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++)
        outb(DEBUG_PORT, (u8)text[i]);
}

void console_flush(void)
{
    if (unsent) {
        unsent = false;
        evtchn_send(console_port);
    }
}

bool console_drained(void)
{
    return !console_ring || console_ring->out_cons == console_ring->out_prod;
}

/* Waits for room; false if nobody made any. */
static bool make_room(void)
{
    XENCONS_RING_IDX size = sizeof(console_ring->out);

    console_flush();
    for (unsigned int i = 0; i < PATIENCE; i++) {
        if (console_ring->out_prod - console_ring->out_cons < size)
            return true;
        sched_op(SCHEDOP_yield, NULL);
    }
    return false;
}

void console_write(const char *text, size_t len)
{
    XENCONS_RING_IDX size = sizeof(console_ring->out);
    bool line_end = false;

    if (!console_ring) {
        debug_write(text, len);
        return;
    }
    for (size_t i = 0; i < len; i++) {
        XENCONS_RING_IDX prod = console_ring->out_prod;

        if (prod - console_ring->out_cons >= size && !make_room()) {
            console_ring = NULL;
            debug_write(text + i, len - i);
            return;
        }
        console_ring->out[prod & (size - 1)] = text[i];
        /* The backend may look at any moment: the byte goes first. x86 keeps the order of stores. */
        barrier();
        console_ring->out_prod = prod + 1;
        unsent = true;
        line_end |= text[i] == '\n';
    }
    if (line_end)
        console_flush();
}
