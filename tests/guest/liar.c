/*
 * liar: a frontend that breaks the protocols of PV devices from inside.
 *
 * Purpose: for a further console and a 9pfs share, each lie on the list ends in the state Closing
 * of that device, and then an honest frontend is served again; the other device is served all along.
 * The host's own messages are for the test to look at.
 * Blind spots: lies that take two vCPUs (a word that changes while it is read); other devices.
 *
 * Driven by: test_liar
 */
#include "xenstore.h"

#include <xen/io/9pfs.h>

const char test_title[] = "Lying frontends";

#define LIE 0xdeadu

static grant_ref_t next_ref = 8;
static evtchn_port_t port, other_port;
static char home[64], backend[64];

static grant_ref_t grant(void *page)
{
    grant_access(next_ref, 0, (ulong)page >> PAGE_SHIFT, false);
    return next_ref++;
}

static void find(const char *kind, unsigned int devid)
{
    xs_format(home, sizeof(home), "device/%s/%u", kind, devid);
    char path[96];

    xs_format(path, sizeof(path), "%s/backend", home);
    if (xs_read(path, backend, sizeof(backend)) <= 0)
        skip("no device %s", home);
}

static void state(enum xenbus_state value)
{
    xs_set(home, "state", value);
}

/* The backend has cut us off; begins anew. */
static void caught(const char *lie)
{
    if (!xs_wait(backend, "state", XenbusStateClosing))
        failure("%s: the backend's state is %u", lie, xs_number(backend, "state"));
    else
        printk("caught: %s\n", lie);
    state(XenbusStateClosed);
    if (!xs_wait(backend, "state", XenbusStateClosed))
        failure("%s: the backend does not close", lie);
    state(XenbusStateInitialising);
    if (!xs_wait(backend, "state", XenbusStateInitWait))
        failure("%s: no way back", lie);
}

static void connected(const char *what)
{
    state(XenbusStateInitialised);
    if (!xs_wait(backend, "state", XenbusStateConnected))
        failure("%s: the backend's state is %u", what, xs_number(backend, "state"));
}

/* ---- console ---- */

static struct xencons_interface *cons;
static grant_ref_t cons_ref;

static void console_nodes(void)
{
    memset(cons, 0, PAGE_SIZE);
    xs_set(home, "ring-ref", cons_ref);
    xs_set(home, "port", port);
}

static void console_works(void)
{
    static const char text[] = "honest\n";

    find("console", 1);
    console_nodes();
    connected("an honest console");
    memcpy(cons->out, text, sizeof(text) - 1);
    barrier();
    cons->out_prod = sizeof(text) - 1;
    evtchn_send(port);
    check_hex("console output taken", cons->out_cons, sizeof(text) - 1);
    state(XenbusStateClosed);
    state(XenbusStateInitialising);
}

static void console_lies(void)
{
    find("console", 1);
    console_nodes();
    xs_set(home, "ring-ref", LIE);
    state(XenbusStateInitialised);
    caught("console: a grant that is none");
    console_nodes();
    xs_set(home, "port", LIE);
    state(XenbusStateInitialised);
    caught("console: a port that is none");
    console_nodes();
    connected("console");
    cons->out_prod = 5000;
    evtchn_send(port);
    caught("console: more output than the ring holds");
    console_nodes();
    connected("console");
    cons->in_cons = 7;
    evtchn_send(port);
    caught("console: input read that was not there");
    console_nodes();
    grant_access(cons_ref, 5, (ulong)cons >> PAGE_SHIFT, false);
    state(XenbusStateInitialised);
    caught("console: a page granted to somebody else");
    grant_access(cons_ref, 0, (ulong)cons >> PAGE_SHIFT, false);
}

/* ---- 9pfs ---- */

static struct xen_9pfs_data_intf *intf;
static u8 *data;
static grant_ref_t intf_ref, data_refs[2];

static void p9_nodes(void)
{
    memset(intf, 0, PAGE_SIZE);
    memset(data, 0, 2 * PAGE_SIZE);
    intf->ring_order = 1;
    intf->ref[0] = data_refs[0];
    intf->ref[1] = data_refs[1];
    xs_set(home, "version", 1);
    xs_set(home, "num-rings", 1);
    xs_set(home, "ring-ref0", intf_ref);
    xs_set(home, "event-channel-0", other_port);
}

static void p9_send(u32 size, u8 type, u32 produced)
{
    u8 *out = data + PAGE_SIZE;

    memcpy(out, &size, 4);
    out[4] = type;
    barrier();
    intf->out_prod = produced;
    evtchn_send(other_port);
}

static void p9_lies(void)
{
    find("9pfs", 0);
    p9_nodes();
    xs_set(home, "version", 9);
    state(XenbusStateInitialised);
    caught("9pfs: a version that is none");
    p9_nodes();
    xs_set(home, "num-rings", 4096);
    state(XenbusStateInitialised);
    caught("9pfs: thousands of rings");
    p9_nodes();
    intf->ring_order = 31;
    state(XenbusStateInitialised);
    caught("9pfs: a ring of terabytes");
    p9_nodes();
    intf->ref[1] = LIE;
    state(XenbusStateInitialised);
    caught("9pfs: half a ring");
    p9_nodes();
    connected("9pfs");
    p9_send(11, 120, 0x80000000u);
    caught("9pfs: more requests than the ring holds");
    p9_nodes();
    connected("9pfs");
    p9_send(0xffffffffu, 110, 100);
    caught("9pfs: a request of 4 GiB");
    p9_nodes();
    connected("9pfs");
    p9_send(8, 110, 8);
    caught("9pfs: a request without its fields");
    p9_nodes();
    connected("9pfs");
    intf->in_cons = 100;
    p9_send(11, 120, 11);
    caught("9pfs: answers read that were not there");
}

static void p9_works(void)
{
    find("9pfs", 0);
    p9_nodes();
    connected("an honest 9pfs");
    /* Tclunk of a fid that there is none: Rlerror. */
    p9_send(11, 120, 11);
    for (unsigned int i = 0; i < 20000 && READ_ONCE(intf->in_prod) == 0; i++)
        sched_op(SCHEDOP_yield, NULL);
    check_hex("answer", intf->in_prod, 11);
    check_hex("its type", data[4], 7);
    state(XenbusStateClosed);
    state(XenbusStateInitialising);
}

void test_main(void)
{
    if (!xs_init())
        skip("no xenstore");
    grant_table_map(1);
    cons = alloc_pages(1);
    cons_ref = grant(cons);
    intf = alloc_pages(1);
    intf_ref = grant(intf);
    data = alloc_pages(2);
    data_refs[0] = grant(data);
    data_refs[1] = grant(data + PAGE_SIZE);
    if (evtchn_alloc_unbound(DOMID_SELF, 0, &port) || evtchn_alloc_unbound(DOMID_SELF, 0, &other_port))
        error("no event channels");
    console_lies();
    console_works();
    p9_lies();
    console_works();
    p9_works();
    success();
}
