/*
 * liar_blk: a frontend of disks that breaks the protocol of xen/io/blkif.h from inside.
 *
 * Purpose: each lie on the list ends in the state Closing of that disk, or is answered with an
 * error; then an honest driver is served again, and nothing that the lie did not name has changed,
 * neither in memory nor (the test looks) on the disk. With a second vCPU: requests that change while
 * they are read, and requests without end.
 * Blind spots: what other domains notice.
 *
 * It uses up disks from xvda on, since the host says only so much about each: thirteen, of which the
 * last is read-only.
 *
 * With endless=1 it does nothing but put requests, and has no end.
 *
 * Driven by: test_liar
 * Sources: liars/blk*
 */
#include "liars/blk.h"
#include "random.h"

const char test_title[] = "Lying frontends of disks";

static void writes_to_readonly(void)
{
    for (u8 operation = BLKIF_OP_WRITE; operation <= BLKIF_OP_FLUSH_DISKCACHE; operation++) {
        request(operation, 1, 0);
        answered(operation, BLKIF_RSP_ERROR);
    }
    indirect_request(BLKIF_OP_WRITE, 3, 0);
    answered(BLKIF_OP_WRITE, BLKIF_RSP_ERROR);
    discard(0, 0, 8);
    answered(BLKIF_OP_DISCARD, BLKIF_RSP_EOPNOTSUPP);
    printk("answered: writes to what is read-only\n");
}

/* Requests of which most fields, but not all, are what they should be. */
static void shake(void)
{
    u32 count = 1 + random_below(6);

    ring.produced = ring.shared[RSP_PROD];
    for (u32 i = 0; i < count && random_below(8); i++) {
        u8 operation = (u8)random_below(8);
        struct blkif_request *r = request(operation, (u8)random_below(13), random_below(2 * SECTORS));

        for (u32 j = 0; j < BLKIF_MAX_SEGMENTS_PER_REQUEST && operation != BLKIF_OP_INDIRECT; j++)
            if (!random_below(40))
                r->seg[j] = (struct blkif_request_segment){random_below(64), (u8)random_below(9),
                                                           (u8)random_below(9)};
        if (operation == BLKIF_OP_INDIRECT)
            indirect_request((u8)random_below(3), (u16)random_below(300), random_below(2 * SECTORS));
    }
    ring_lie(&ring, ring.shared[RSP_PROD] + count);
    sched_op(SCHEDOP_yield, NULL);
}

static void never_end(void)
{
    frontend_connect();
    printk("begun\n");
    for (;;) {
        while (ring.produced - READ_ONCE(ring.shared[RSP_PROD]) < ring.size)
            request(BLKIF_OP_READ, BLKIF_MAX_SEGMENTS_PER_REQUEST, 0);
        ring_push(&ring);
    }
}

void test_main(void)
{
    void *pages[2];

    frontend_init();
    blk_init();
    frontend_begin(&blk_frontend);
    if (cmdline_number("endless", 0))
        never_end();
    blk_tell_lies();
    blk_tell_answers();
    blk_tell_races();
    frontend_next();
    pages[0] = ring_pages;
    pages[1] = indirect;
    frontend_scribble(pages, 2, shake);
    frontend_next();
    frontend_connect();
    writes_to_readonly();
    frontend_leave();
    frontend_begin(&blk_frontend);
    frontend_vanish();
    success();
}
