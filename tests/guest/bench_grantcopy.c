/*
 * bench_grantcopy: what GNTTABOP_copy costs, by size.
 *
 * Purpose: measures copies from a page of the guest's own to one that is granted, and prints one
 * line for each size for the benchmark to read:
 *   bench_grantcopy: size=4096 count=1 n=200 ns=N least=N of_ten=N
 * with the median, the least, and what nine of ten do not exceed, each for one hypercall of `count`
 * operations of `size` bytes. The command line may hold n=COUNT.
 * Blind spots: both pages are the caller's own; the guest's clock is taken as true.
 *
 * Variants: hvm64
 * Expect: bench_grantcopy: size=4096 count=1 n=\d+ ns=\d+ least=\d+ of_ten=\d+
 * Options: --cmdline n=50
 */
#include "guest.h"
#include "samples.h"

const char test_title[] = "Grant copies";

#define MOST 20000u
#define BATCH 16u
#define REF 20

static const struct {
    u16 size;
    unsigned int count;
} kinds[] = {{0, 1}, {64, 1}, {256, 1}, {1024, 1}, {4096, 1}, {64, BATCH}, {4096, BATCH}};

static u32 cycles[MOST];
static struct gnttab_copy ops[BATCH];

static void run(u16 size, unsigned int count, unsigned int n)
{
    struct summary s;

    for (unsigned int i = 0; i < count; i++)
        ops[i].len = size;
    for (unsigned int i = 0; i < n; i++) {
        u64 start = rdtsc();
        long rc = grant_table_op(GNTTABOP_copy, ops, count);

        cycles[i] = (u32)(rdtsc() - start);
        for (unsigned int k = 0; k < count; k++)
            if (rc || ops[k].status)
                error("copy: %ld %d", rc, ops[k].status);
    }
    s = summarize(cycles, n);
    printk("bench_grantcopy: size=%u count=%u n=%u ns=%u least=%u of_ten=%u\n", size, count, n, s.median, s.least,
           s.most_of_ten);
}

void test_main(void)
{
    ulong n = cmdline_number("n", 1000);
    u8 *from = alloc_pages(1), *to = alloc_pages(1);
    domid_t own = own_domid();

    if (!n || n > MOST)
        error("n=%lu is not between 1 and %u", n, MOST);
    grant_table_map(1);
    grant_access(REF, own, (ulong)to >> PAGE_SHIFT, false);
    memset(from, 0x5a, PAGE_SIZE);
    for (unsigned int i = 0; i < BATCH; i++) {
        ops[i].source.u.gmfn = (ulong)from >> PAGE_SHIFT;
        ops[i].source.domid = DOMID_SELF;
        ops[i].dest.u.ref = REF;
        ops[i].dest.domid = own;
        ops[i].flags = GNTCOPY_dest_gref;
    }
    for (unsigned int i = 0; i < ARRAY_SIZE(kinds); i++)
        run(kinds[i].size, kinds[i].count, (unsigned int)n);
    check_true("the bytes are there", !memcmp(from, to, PAGE_SIZE));
    success();
}
