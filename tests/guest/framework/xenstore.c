/*
 * A small xenstore client: one request at a time, no watches, no transactions.
 * Facts: xen/io/xs_wire.h, docs/misc/xenstore.txt.
 */
#include "xenstore.h"

/* Yields before the store counts as dead. */
#define PATIENCE 20000

static volatile struct xenstore_domain_interface *ring;
static evtchn_port_t port;

bool xs_init(void)
{
    u64 pfn = 0, number = 0;

    if (hvm_param_get(HVM_PARAM_STORE_PFN, &pfn) || hvm_param_get(HVM_PARAM_STORE_EVTCHN, &number) || !pfn)
        return false;
    ring = (volatile struct xenstore_domain_interface *)(ulong)(pfn << PAGE_SHIFT);
    port = (evtchn_port_t)number;
    return true;
}

static void put(const void *data, u32 len)
{
    const char *bytes = data;

    for (u32 i = 0; i < len; i++) {
        u32 tries = 0;

        while (ring->req_prod - ring->req_cons == XENSTORE_RING_SIZE) {
            evtchn_send(port);
            sched_op(SCHEDOP_yield, NULL);
            if (++tries > PATIENCE)
                error("xenstore takes no requests");
        }
        ring->req[MASK_XENSTORE_IDX(ring->req_prod)] = bytes[i];
        barrier();
        ring->req_prod++;
    }
}

static void get(void *data, u32 len)
{
    char *bytes = data;

    for (u32 i = 0; i < len; i++) {
        u32 tries = 0;

        while (ring->rsp_prod == ring->rsp_cons) {
            evtchn_send(port);
            sched_op(SCHEDOP_yield, NULL);
            if (++tries > PATIENCE)
                error("xenstore does not answer");
        }
        barrier();
        bytes[i] = ring->rsp[MASK_XENSTORE_IDX(ring->rsp_cons)];
        barrier();
        ring->rsp_cons++;
    }
}

static int ask(u32 type, const char *path, const char *value, char *answer, u32 room)
{
    u32 ahead = (u32)strlen(path) + 1, behind = value ? (u32)strlen(value) : 0;
    struct xsd_sockmsg msg = {.type = type, .len = ahead + behind};
    u32 len;

    put(&msg, sizeof(msg));
    put(path, ahead);
    put(value, behind);
    evtchn_send(port);
    get(&msg, sizeof(msg));
    len = msg.len;
    for (u32 i = 0; i < len; i++) {
        char byte;

        get(&byte, 1);
        if (i + 1 < room)
            answer[i] = byte;
    }
    if (room)
        answer[len < room ? len : room - 1] = 0;
    return msg.type == XS_ERROR ? -1 : (int)len;
}

int xs_read(const char *path, char *value, u32 room)
{
    return ask(XS_READ, path, NULL, value, room);
}

int xs_write(const char *path, const char *value)
{
    return ask(XS_WRITE, path, value, NULL, 0);
}

int xs_remove(const char *path)
{
    return ask(XS_RM, path, NULL, NULL, 0);
}

static const char *join(const char *folder, const char *name)
{
    static char path[128];

    xs_format(path, sizeof(path), "%s/%s", folder, name);
    return path;
}

void xs_format(char *buf, u32 size, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    vsnprintk(buf, size, fmt, args);
    va_end(args);
}

void xs_set(const char *folder, const char *name, u32 value)
{
    char text[16];

    xs_format(text, sizeof(text), "%u", value);
    if (xs_write(join(folder, name), text) < 0)
        error("cannot write %s/%s", folder, name);
}

u32 xs_number(const char *folder, const char *name)
{
    char text[16];
    u32 value = 0;

    if (xs_read(join(folder, name), text, sizeof(text)) <= 0)
        return 0;
    for (const char *c = text; *c >= '0' && *c <= '9'; c++)
        value = value * 10 + (u32)(*c - '0');
    return value;
}

bool xs_wait(const char *folder, const char *name, u32 value)
{
    for (u32 i = 0; i < PATIENCE; i++) {
        if (xs_number(folder, name) == value)
            return true;
        sched_op(SCHEDOP_yield, NULL);
    }
    return false;
}
