/*
 * Lies of a frontend of disks that take two vCPUs: requests that change while they are read, and
 * requests without end. See blk.h.
 */
#include "blk.h"

enum { NOTHING, ENDLESS, FLIP, FLIP_TO_LIES, STOP, QUIT };

static volatile u32 job, rounds, answers_to_second;
static struct blkif_request *volatile flipped;

static void endless(void)
{
    while (job == ENDLESS) {
        while (ring.produced - READ_ONCE(ring.shared[RSP_PROD]) < ring.size)
            request(BLKIF_OP_READ, 1, ring.produced % 64);
        ring_push(&ring);
        answers_to_second = READ_ONCE(ring.shared[RSP_PROD]);
    }
}

static void flip(void)
{
    static const u64 sectors[] = {0, 1ull << 63};

    while (job == FLIP) {
        struct blkif_request *r = flipped;

        if (r) {
            WRITE_ONCE(r->operation, rounds & 1 ? 200 : BLKIF_OP_READ);
            WRITE_ONCE(r->nr_segments, 1 + (rounds & 1));
            WRITE_ONCE(r->sector_number, sectors[rounds >> 1 & 1]);
        }
        rounds++;
    }
}

static void flip_to_lies(void)
{
    while (job == FLIP_TO_LIES) {
        struct blkif_request *r = flipped;

        if (r) {
            WRITE_ONCE(r->seg[0].last_sect, rounds & 1 ? 255 : LAST);
            WRITE_ONCE(r->seg[0].gref, rounds & 2 ? BAD_REF : refs[0]);
            WRITE_ONCE(ring.shared[REQ_PROD], ring.produced + (rounds & 4 ? 99 : 0));
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
        endless();
        flip();
        flip_to_lies();
        if (job == QUIT)
            vcpu_op(VCPUOP_down, 1, NULL);
        job = NOTHING;
    }
}

static void begin_job(u32 number)
{
    rounds = 0;
    flipped = NULL;
    barrier();
    job = number;
}

/* From now on the other vCPU changes this request, or, with NULL, none any more. */
static void set_flipped(struct blkif_request *r)
{
    u32 before = rounds;

    flipped = r;
    while (rounds - before < 2)
        cpu_relax();
}

static void end_job(void)
{
    job = STOP;
    while (job)
        cpu_relax();
}

static void requests_without_end(void)
{
    u32 reads = 0;

    frontend_connect();
    begin_job(ENDLESS);
    while (!answers_to_second)
        cpu_relax();
    /* The store and the console are served meanwhile; and so is the disk. */
    for (u32 before = answers_to_second; reads < 200 || answers_to_second - before < 500; reads++)
        if (!frontend_served())
            break;
    check_true("served to the end", frontend_served());
    end_job();
    ring_push(&ring);
    frontend_leave();
    printk("answered: requests without end\n");
}

static void requests_that_change(void)
{
    u32 okay = 0, errors = 0, unknown = 0;

    frontend_connect();
    begin_job(FLIP);
    for (u32 i = 0; i < 400; i++) {
        struct blkif_response *a;

        fill(MARK);
        set_flipped(request(BLKIF_OP_READ, 2, 0));
        ring_push(&ring);
        a = ring_answer(&ring);
        set_flipped(NULL);
        if (!a) {
            failure("a request that changes is not answered");
            break;
        }
        /* Either the one or the other, all through. */
        if (a->operation == 200 && a->status == BLKIF_RSP_EOPNOTSUPP)
            unknown++;
        else if (a->operation != BLKIF_OP_READ)
            failure("operation %u, status %d", a->operation, a->status);
        else if (a->status == BLKIF_RSP_ERROR && is_filled(data[0], PAGE_SIZE, MARK))
            errors++;
        else if (a->status == BLKIF_RSP_OKAY && holds_sectors(data[0], 0, 8))
            okay++;
        else
            failure("status %d, and something else is in the page", a->status);
    }
    end_job();
    frontend_leave();
    printk("answered: requests that change: %u read, %u errors, %u unknown\n", okay, errors, unknown);
}

static void requests_that_change_to_lies(void)
{
    u32 okay = 0, errors = 0;

    begin_job(FLIP_TO_LIES);
    for (u32 i = 0; i < 20; i++) {
        frontend_connect();
        for (u32 j = 0; j < 20 && frontend_served(); j++) {
            set_flipped(request(BLKIF_OP_READ, 1, 0));
            ring_push(&ring);
            if (ring_answer(&ring))
                okay++;
        }
        set_flipped(NULL);
        errors += !frontend_served();
        frontend_leave();
    }
    end_job();
    printk("answered: requests that change to lies: %u answered, cut off %u times\n", okay, errors);
    frontend_connect();
    blk_check();
    frontend_leave();
}

void blk_tell_races(void)
{
    if (vcpu_start(1, second))
        skip("no second vCPU");
    requests_without_end();
    requests_that_change();
    requests_that_change_to_lies();
    job = QUIT;
}
