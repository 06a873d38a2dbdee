/*
 * steady_blk: an honest frontend of a disk that goes on while the image behind it fails.
 *
 * Purpose: what the host cannot do is answered with an error, and nothing stays without an answer.
 * It reads the last sectors over and over, or (write=1) writes one after the other and flushes,
 * until there is an error, or that often without any (count=). Then what can still be done is done:
 * with lost=1 nothing, else the first sectors can be read.
 * Blind spots: what the host says of it is for the test to look at.
 *
 * Driven by: test_failing_host
 * Sources: liars/blk_front.c
 * Sources: liars/blk.h
 */
#include "liars/blk.h"

const char test_title[] = "A disk whose image fails";

static int ask(u8 operation, u64 sector)
{
    struct blkif_response *a;

    request(operation, operation == BLKIF_OP_FLUSH_DISKCACHE ? 0 : 1, sector);
    ring_push(&ring);
    a = ring_answer(&ring);
    if (!a)
        error("operation %u of sector %llu has no answer", operation, (unsigned long long)sector);
    return a->status;
}

void test_main(void)
{
    bool writing = cmdline_number("write", 0), lost = cmdline_number("lost", 0);
    u64 sectors, sector;
    u32 okay = 0, count = (u32)cmdline_number("count", ~0u);
    int status = BLKIF_RSP_OKAY;

    frontend_init();
    blk_init();
    frontend_begin(&blk_frontend);
    frontend_connect();
    /* Zeroes would not take any room. */
    fill(MARK);
    sectors = frontend_offer("sectors") & ~7u;
    sector = writing ? 8 : sectors - 8;
    for (; okay < count; okay++) {
        if (okay == 10)
            printk("steady: begun\n");
        status = ask(writing ? BLKIF_OP_WRITE : BLKIF_OP_READ, sector);
        if (writing && status == BLKIF_RSP_OKAY)
            status = ask(BLKIF_OP_FLUSH_DISKCACHE, 0);
        if (status != BLKIF_RSP_OKAY)
            break;
        if (writing)
            sector += 8;
        if (sector == sectors)
            error("there is no error");
    }
    check_signed("the last answer", status, count == ~0u ? BLKIF_RSP_ERROR : BLKIF_RSP_OKAY);
    printk("steady: %u answers\n", okay);
    for (u32 i = 0; i < 5; i++) {
        check_signed("reading the first sectors", ask(BLKIF_OP_READ, 0), lost ? BLKIF_RSP_ERROR : BLKIF_RSP_OKAY);
        if (lost) {
            check_signed("writing", ask(BLKIF_OP_WRITE, 0), BLKIF_RSP_ERROR);
            check_signed("flushing", ask(BLKIF_OP_FLUSH_DISKCACHE, 0), BLKIF_RSP_ERROR);
        }
    }
    check_true("connected still", frontend_served());
    frontend_leave();
    success();
}
