/*
 * argo: rings and messages of a domain with itself.
 *
 * Purpose: every argo_op command where the toolstack allows Argo: rings are registered, filled and
 * told about in the words of public/argo.h, VIRQ_ARGO comes with each message, and each refusal has
 * the errno of Xen's common/argo.c.
 * Blind spots: another domain's rings (unit tests have them); rings of more than two pages.
 *
 * Variants: hvm64 hvm32pae hvm32
 * Driven by: test_calls
 */
#include "guest.h"

#include <xen/argo.h>

const char test_title[] = "argo_op";

#define NOBODY 4444
#define PORT 77
#define LENGTH 4096u
#define PAGES 2u

static domid_t own;
static xen_argo_ring_t *ring;
static u64 gfns[PAGES];
static u8 text[256];

static long argo_op(unsigned int cmd, const void *a, const void *b, ulong c, ulong d)
{
    return hypercall5(__HYPERVISOR_argo_op, cmd, (ulong)a, (ulong)b, c, d);
}

static int add(u32 aport, domid_t partner, u32 length, ulong pages, ulong flags)
{
    xen_argo_register_ring_t op = {.aport = aport, .partner_id = partner, .len = length};

    return (int)argo_op(XEN_ARGO_OP_register_ring, &op, gfns, pages, flags);
}

static int take(u32 aport, domid_t partner)
{
    xen_argo_unregister_ring_t op = {.aport = aport, .partner_id = partner};

    return (int)argo_op(XEN_ARGO_OP_unregister_ring, &op, NULL, 0, 0);
}

static int send(domid_t from, domid_t to, u32 aport, u32 length, u32 message_type)
{
    xen_argo_send_addr_t addr = {
        .src = {.aport = 5, .domain_id = from},
        .dst = {.aport = aport, .domain_id = to},
    };
    xen_argo_iov_t iov[2] = {{.iov_len = length / 2}, {.iov_len = length - length / 2}};

    set_xen_guest_handle(iov[0].iov_hnd, text);
    set_xen_guest_handle(iov[1].iov_hnd, text + length / 2);
    return (int)argo_op(XEN_ARGO_OP_sendv, &addr, iov, 2, message_type);
}

static void test_register(void)
{
    call("XEN_ARGO_OP_register_ring");
    check_rc("a length that is no multiple", add(PORT, own, LENGTH + 8, PAGES, 0), -XEN_EINVAL);
    check_rc("a ring that is too small", add(PORT, own, 16, 1, 0), -XEN_EINVAL);
    check_rc("another number of pages", add(PORT, own, LENGTH, PAGES + 1, 0), -XEN_EINVAL);
    check_rc("flags that do not exist", add(PORT, own, LENGTH, PAGES, 2), -XEN_EINVAL);
    check_rc("a partner that does not exist", add(PORT, NOBODY, LENGTH, PAGES, 0), -XEN_ESRCH);
    gfns[1] = alloc_hole(1);
    check_rc("a page that is no memory", add(PORT, own, LENGTH, PAGES, 0), -XEN_EINVAL);
    gfns[1] = gfns[0] + 1;
    check_rc("register_ring", add(PORT, own, LENGTH, PAGES, 0), 0);
    check_rc("once more", add(PORT, own, LENGTH, PAGES, 0), 0);
    check_rc("if there is none", add(PORT, own, LENGTH, PAGES, XEN_ARGO_REGISTER_FLAG_FAIL_EXIST), -XEN_EEXIST);
    check_rc("of another length", add(PORT, own, LENGTH / 2, 1, 0), -XEN_EEXIST);
}

static void test_send(void)
{
    struct xen_argo_ring_message_header *message = (void *)ring->ring;
    evtchn_port_t virq = 0;
    unsigned int full = 0;
    int rc;

    call("XEN_ARGO_OP_sendv");
    if (evtchn_bind_virq(VIRQ_ARGO, 0, &virq))
        error("no VIRQ_ARGO");
    for (unsigned int i = 0; i < sizeof(text); i++)
        text[i] = (u8)(3 * i);
    check_rc("sendv", send(own, own, PORT, 21, 0x12345), 21);
    check_true("VIRQ_ARGO", evtchn_pending(virq));
    check_signed("length with the header", message->len, 21 + sizeof(*message));
    check_hex("source", (u64)message->source.aport << 16 | message->source.domain_id, 5ull << 16 | own);
    check_hex("type", message->message_type, 0x12345);
    check_true("payload", !memcmp(message->data, text, 21));
    check_signed("tx_ptr", ring->tx_ptr, (sizeof(*message) + 21 + 15) / 16 * 16);
    check_rc("as any domain's", send(XEN_ARGO_DOMID_ANY, own, PORT, 1, 0), 1);
    check_rc("in another's name", send(NOBODY, own, PORT, 1, 0), -XEN_EPERM);
    check_rc("to a domain that does not exist", send(own, NOBODY, PORT, 1, 0), -XEN_ESRCH);
    check_rc("to dom0, which has no ring", send(own, 0, PORT, 1, 0), -XEN_ECONNREFUSED);
    check_rc("to a port without a ring", send(own, own, PORT + 1, 1, 0), -XEN_ECONNREFUSED);
    while ((rc = send(own, own, PORT, 200, 0)) == 200)
        full++;
    check_rc("to a full ring", rc, -XEN_EAGAIN);
    check_true("it took some", full >= 15);
    evtchn_close(virq);
}

static void test_notify(void)
{
    struct {
        xen_argo_ring_data_t head;
        xen_argo_ring_data_ent_t entry[2];
    } data = {.head.nent = 2};

    call("XEN_ARGO_OP_notify");
    data.entry[0].ring = (xen_argo_addr_t){.aport = PORT, .domain_id = own};
    data.entry[0].space_required = 300;
    data.entry[1].ring = (xen_argo_addr_t){.aport = PORT + 1, .domain_id = own};
    check_rc("notify", argo_op(XEN_ARGO_OP_notify, &data, NULL, 0, 0), 0);
    check_hex("a full ring", data.entry[0].flags, XEN_ARGO_RING_EXISTS);
    check_signed("what it could take", data.entry[0].max_message_size, LENGTH - 32);
    check_hex("one that does not exist", data.entry[1].flags, 0);
    ring->rx_ptr = ring->tx_ptr;
    check_rc("after it was read", argo_op(XEN_ARGO_OP_notify, &data, NULL, 0, 0), 0);
    check_hex("an empty ring", data.entry[0].flags,
              XEN_ARGO_RING_EXISTS | XEN_ARGO_RING_EMPTY | XEN_ARGO_RING_SUFFICIENT);
    data.entry[0].space_required = LENGTH;
    check_rc("more than ever", argo_op(XEN_ARGO_OP_notify, &data, NULL, 0, 0), 0);
    check_hex("it says so", data.entry[0].flags, XEN_ARGO_RING_EXISTS | XEN_ARGO_RING_EMPTY | XEN_ARGO_RING_EMSGSIZE);
    check_rc("without a question", argo_op(XEN_ARGO_OP_notify, NULL, NULL, 0, 0), 0);
    data.head.nent = 257;
    check_rc("more questions than may be", argo_op(XEN_ARGO_OP_notify, &data, NULL, 0, 0), -XEN_EACCES);
    check_rc("a third argument", argo_op(XEN_ARGO_OP_notify, &data, &data, 0, 0), -XEN_EINVAL);
}

void test_main(void)
{
    own = own_domid();
    shared_info_map();
    evtchn_mask_all();
    ring = alloc_pages(PAGES);
    for (unsigned int i = 0; i < PAGES; i++)
        gfns[i] = ((ulong)ring >> PAGE_SHIFT) + i;
    test_register();
    test_send();
    test_notify();
    call("XEN_ARGO_OP_unregister_ring");
    check_rc("one that does not exist", take(PORT + 1, own), -XEN_ENOENT);
    check_rc("unregister_ring", take(PORT, own), 0);
    check_rc("once more", take(PORT, own), -XEN_ENOENT);
    check_rc("it is gone", send(own, own, PORT, 1, 0), -XEN_ECONNREFUSED);
    call(NULL);
    check_rc("argo_op.5", argo_op(5, NULL, NULL, 0, 0), -XEN_EOPNOTSUPP);
    success();
}
