/*
 * The honest part of a frontend of disks: pages, a ring, requests and what becomes of them.
 * Facts: xen/io/blkif.h.
 */
#include "blk.h"

#include <xen/io/protocols.h>

#define XVDA 51712u
#ifdef __x86_64__
#define PROTOCOL XEN_IO_PROTO_ABI_X86_64
#else
#define PROTOCOL XEN_IO_PROTO_ABI_X86_32
#endif

u8 *ring_pages, *data[DATA_PAGES];
struct blkif_request_segment *indirect;
grant_ref_t ring_refs[RING_PAGES], refs[DATA_PAGES], indirect_ref;
grant_ref_t ring_readonly, ring_elsewhere, data_readonly, data_elsewhere;
evtchn_port_t port, closed_port;
struct ring ring;
bool persistent;
static u64 next_id = 0x1122334455667788ull;

void blk_init(void)
{
    ring_pages = alloc_pages(RING_PAGES);
    for (u32 i = 0; i < RING_PAGES; i++)
        ring_refs[i] = grant_page(ring_pages + i * PAGE_SIZE);
    for (u32 i = 0; i < DATA_PAGES; i++) {
        data[i] = alloc_pages(1);
        refs[i] = grant_page(data[i]);
    }
    indirect = alloc_pages(1);
    indirect_ref = grant_page(indirect);
    ring_readonly = grant_readonly(ring_pages);
    ring_elsewhere = grant_elsewhere(ring_pages);
    data_readonly = grant_readonly(data[1]);
    data_elsewhere = grant_elsewhere(data[1]);
    port = new_port();
    closed_port = new_port();
    evtchn_close(closed_port);
}

void blk_nodes(void)
{
    static const char *const optional[] = {
        "ring-page-order", "ring-ref0", "ring-ref1", "ring-ref2", "ring-ref3", "multi-queue-num-queues", "queue-0",
        "queue-1",
    };

    for (u32 i = 0; i < ARRAY_SIZE(optional); i++)
        frontend_remove(optional[i]);
    ring_init(&ring, ring_pages, 1, sizeof(union blkif_sring_entry), port);
    frontend_set("ring-ref", ring_refs[0]);
    frontend_set("event-channel", port);
    frontend_set("feature-persistent", persistent);
    frontend_text("protocol", PROTOCOL);
}

struct blkif_request *request(u8 operation, u8 count, u64 sector)
{
    struct blkif_request *r = ring_put(&ring);

    r->operation = operation;
    r->nr_segments = count;
    r->id = next_id++;
    r->sector_number = sector;
    for (u32 i = 0; i < BLKIF_MAX_SEGMENTS_PER_REQUEST && i < count; i++)
        r->seg[i] = (struct blkif_request_segment){refs[i % DATA_PAGES], 0, LAST};
    return r;
}

struct blkif_request_indirect *indirect_request(u8 operation, u16 count, u64 sector)
{
    struct blkif_request_indirect *r = ring_put(&ring);

    r->operation = BLKIF_OP_INDIRECT;
    r->indirect_op = operation;
    r->nr_segments = count;
    r->id = next_id++;
    r->sector_number = sector;
    r->indirect_grefs[0] = indirect_ref;
    for (u32 i = 0; i < PAGE_SIZE / sizeof(*indirect); i++)
        indirect[i] = (struct blkif_request_segment){refs[i % DATA_PAGES], 0, LAST};
    return r;
}

struct blkif_request_discard *discard(u8 flag, u64 sector, u64 sectors)
{
    struct blkif_request_discard *r = ring_put(&ring);

    r->operation = BLKIF_OP_DISCARD;
    r->flag = flag;
    r->id = next_id++;
    r->sector_number = sector;
    r->nr_sectors = sectors;
    return r;
}

void fill(int byte)
{
    for (u32 i = 0; i < DATA_PAGES; i++)
        memset(data[i], byte, PAGE_SIZE);
}

bool is_filled(const u8 *from, u32 size, int byte)
{
    for (u32 i = 0; i < size; i++)
        if (from[i] != byte)
            return false;
    return true;
}

void answered(u8 operation, int status)
{
    u64 id = next_id - 1;
    struct blkif_response *a;

    fill(MARK);
    ring_push(&ring);
    a = ring_answer(&ring);
    if (!a) {
        failure("operation %u: no answer", operation);
        return;
    }
    check_hex("its id", a->id, id);
    check_hex("its operation", a->operation, operation);
    check_signed("its status", a->status, status);
    for (u32 i = 0; i < DATA_PAGES; i++)
        check_true("data as it was", is_filled(data[i], PAGE_SIZE, MARK));
}

bool holds_sectors(const u8 *page, u64 sector, u32 count)
{
    for (u32 i = 0; i < count; i++)
        if (*(const u64 *)(page + 512 * i) != sector + i)
            return false;
    return true;
}

void blk_check(void)
{
    struct blkif_request *r = request(BLKIF_OP_READ, 1, 100);
    struct blkif_response *a;

    fill(MARK);
    r->seg[0].first_sect = 2;
    r->seg[0].last_sect = 3;
    ring_push(&ring);
    a = ring_answer(&ring);
    check_true("a read is answered", a && a->status == BLKIF_RSP_OKAY && a->id == next_id - 1);
    check_true("two sectors are read", holds_sectors(data[0] + 1024, 100, 2));
    check_true("and nothing else", is_filled(data[0], 1024, MARK) && is_filled(data[0] + 2048, 2048, MARK));

    for (u32 i = 0; i < 2; i++) {
        request(i ? BLKIF_OP_READ : BLKIF_OP_WRITE, 1, OURS);
        fill(i ? 0 : MARK);
        ring_push(&ring);
        a = ring_answer(&ring);
        check_true("our sectors", a && a->status == BLKIF_RSP_OKAY && is_filled(data[0], PAGE_SIZE, MARK));
    }
}

const struct frontend blk_frontend = {"vbd", XVDA, 16, blk_nodes, blk_check};
