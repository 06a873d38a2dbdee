/*
 * liar: frontends of a console and a 9pfs share that break their protocols from inside.
 *
 * Purpose: each lie on the list ends in the state Closing of that device, and then an honest driver
 * is served again; the other device is served all along. States and random words are survived. The
 * host's own messages are for the test to look at: each line "caught" holds what it has to say.
 * Blind spots: lies that take two vCPUs (a word that changes while it is read).
 *
 * Driven by: test_liar
 */
#include "frontend.h"

#include <xen/io/9pfs.h>

const char test_title[] = "Lying frontends of consoles and shared folders";

static evtchn_port_t port, other_port;

/* ---- console ---- */

static struct xencons_interface *cons;
static grant_ref_t cons_ref, cons_elsewhere;

static void console_nodes(void)
{
    memset(cons, 0, PAGE_SIZE);
    frontend_set("ring-ref", cons_ref);
    frontend_set("port", port);
}

static void console_check(void)
{
    static const char text[] = "honest\n";
    u32 at = cons->out_prod;

    for (u32 i = 0; i < sizeof(text) - 1; i++)
        cons->out[MASK_XENCONS_IDX(at + i, cons->out)] = text[i];
    barrier();
    cons->out_prod = at + sizeof(text) - 1;
    evtchn_send(port);
    check_hex("console output taken", cons->out_cons, at + sizeof(text) - 1);
}

static const struct frontend console = {"console", 1, 1, console_nodes, console_check};

TELL(console_bad_ref, frontend_set("ring-ref", BAD_REF))
TELL(console_bad_port, frontend_set("port", BAD_REF))
TELL(console_elsewhere, frontend_set("ring-ref", cons_elsewhere))
TELL(console_no_ref, frontend_remove("ring-ref"))
TELL(console_text, frontend_text("port", long_text()))
TELL(console_too_much, cons->out_prod = 5000; evtchn_send(port))
TELL(console_backwards, cons->out_prod = cons->out_cons - 1; evtchn_send(port))
TELL(console_not_read, cons->in_cons = 7; evtchn_send(port))

static const struct lie console_nodes_lies[] = {
    {"a grant that is none", "grant not usable: there is no reference 57005 (status -3)", console_bad_ref},
    {"a port that is none", "event channel 57005 is none that waits for us", console_bad_port},
    {"a page granted to somebody else", "grant not usable: flags 0x1 do not permit it (status -1)",
     console_elsewhere},
    {"no ring", "its node ring-ref is missing", console_no_ref},
    {"long text for a port", "its node port is 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx', not 1 to 131071",
     console_text},
};

static const struct lie console_lies[] = {
    {"more output than the ring holds", "ring indexes that cannot be: 5000 bytes written, 0 not read",
     console_too_much},
    {"output that goes backwards", "ring indexes that cannot be: 4294967295 bytes written, 0 not read",
     console_backwards},
    {"input read that was not there", "ring indexes that cannot be: 0 bytes written, 4294967289 not read",
     console_not_read},
};

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
    frontend_set("version", 1);
    frontend_set("num-rings", 1);
    frontend_set("ring-ref0", intf_ref);
    frontend_set("event-channel-0", other_port);
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

static void p9_check(void)
{
    /* Tclunk of a fid that there is none: Rlerror. */
    p9_send(11, 120, 11);
    for (unsigned int i = 0; i < 20000 && READ_ONCE(intf->in_prod) == 0; i++)
        sched_op(SCHEDOP_yield, NULL);
    check_hex("answer", intf->in_prod, 11);
    check_hex("its type", data[4], 7);
}

static const struct frontend p9 = {"9pfs", 0, 1, p9_nodes, p9_check};

TELL(p9_version, frontend_set("version", 9))
TELL(p9_rings, frontend_set("num-rings", 4096))
TELL(p9_terabytes, intf->ring_order = 31)
TELL(p9_half, intf->ref[1] = BAD_REF)
TELL(p9_port, frontend_remove("event-channel-0"))
TELL(p9_too_much, p9_send(11, 120, 0x80000000u))
TELL(p9_huge, p9_send(0xffffffffu, 110, 100))
TELL(p9_short, p9_send(8, 110, 8))
TELL(p9_not_there, intf->in_cons = 100; p9_send(11, 120, 11))

static const struct lie p9_nodes_lies[] = {
    {"a version that is none", "its version is '9', not '1'", p9_version},
    {"thousands of rings", "its node num-rings is '4096', not 1 to 4", p9_rings},
    {"a ring of terabytes", "its ring_order is 31, not 1 to 9", p9_terabytes},
    {"half a ring", "grant not usable: there is no reference 57005 (status -3)", p9_half},
    {"no event channel", "its node event-channel-0 is missing", p9_port},
};

static const struct lie p9_lies[] = {
    {"more requests than the ring holds", "ring indexes that cannot be: 2147483648 bytes in 4096",
     p9_too_much},
    {"a request of 4 GiB", "a request of 4294967295 bytes, not 7 to 4096", p9_huge},
    {"a request without its fields", "a malformed request of type 110", p9_short},
    {"answers read that were not there", "ring indexes that cannot be: 4294967196 bytes in 4096", p9_not_there},
};

TELL(shake, evtchn_send(port); evtchn_send(other_port); sched_op(SCHEDOP_yield, NULL))

void test_main(void)
{
    void *pages[3];

    frontend_init();
    port = new_port();
    other_port = new_port();
    pages[0] = cons = alloc_pages(1);
    pages[1] = intf = alloc_pages(1);
    pages[2] = data = alloc_pages(2);
    cons_ref = grant_page(cons);
    cons_elsewhere = grant_elsewhere(cons);
    intf_ref = grant_page(intf);
    data_refs[0] = grant_page(data);
    data_refs[1] = grant_page(data + PAGE_SIZE);

    frontend_begin(&console);
    frontend_tell_nodes(console_nodes_lies, ARRAY_SIZE(console_nodes_lies));
    frontend_tell(console_lies, ARRAY_SIZE(console_lies));
    frontend_tell_states();
    frontend_begin(&p9);
    frontend_tell_nodes(p9_nodes_lies, ARRAY_SIZE(p9_nodes_lies));
    frontend_tell(p9_lies, ARRAY_SIZE(p9_lies));
    frontend_tell_states();
    frontend_next();
    frontend_scribble(pages + 1, 2, shake);
    /* The other device goes on all along. */
    frontend_begin(&console);
    frontend_next();
    frontend_scribble(pages, 1, shake);
    frontend_vanish();
    success();
}
