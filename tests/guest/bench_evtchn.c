/*
 * bench_evtchn: what an event channel and its upcall cost.
 *
 * Purpose: measures round trips by the TSC and prints one line for each kind for the benchmark:
 *   bench_evtchn: KIND n=200 ns=N least=N of_ten=N
 * with the median, the least, and what nine of ten do not exceed. Kinds: "self" (a vCPU sends to
 * itself, up to the end of the upcall), "spinning" (to vCPU 1 and back, both busy in the guest) and
 * "halted" (the same with both in HLT in between). The command line may hold n=COUNT.
 * Blind spots: the guest's clock is taken as true; with fewer than three processors the two vCPUs
 * and the host loop get in each other's way.
 *
 * Variants: hvm64
 * Expect: bench_evtchn: self n=\d+ ns=\d+ least=\d+ of_ten=\d+
 * Expect: bench_evtchn: spinning n=\d+ ns=\d+ least=\d+ of_ten=\d+
 * Expect: bench_evtchn: halted n=\d+ ns=\d+ least=\d+ of_ten=\d+
 * Options: --vcpus 2 --cmdline n=50
 */
#include "guest.h"
#include "layout.h"
#include "samples.h"

const char test_title[] = "Event channel round trips";

#define MOST 20000u
#define WARM_UP 20u

static u32 cycles[MOST];
static evtchn_port_t ports[2];
static volatile u32 events[2];
static volatile bool halting, answering;

static void take(struct regs *regs)
{
    unsigned int vcpu = this_vcpu();
    struct vcpu_info *vi = &shared_info->vcpu_info[vcpu];

    (void)regs;
    __atomic_store_n(&vi->evtchn_upcall_pending, 0, __ATOMIC_SEQ_CST);
    __atomic_exchange_n(&vi->evtchn_pending_sel, 0, __ATOMIC_SEQ_CST);
    if (!evtchn_pending(ports[vcpu]))
        return;
    evtchn_clear(ports[vcpu]);
    events[vcpu]++;
    if (vcpu && answering)
        evtchn_send(ports[0]);
}

static void second(void)
{
    for (;;) {
        if (halting) {
            irq_wait();
        } else {
            irq_enable();
            for (unsigned int i = 0; i < 64; i++)
                cpu_relax();
            irq_disable();
        }
    }
}

static void round_trip(unsigned int to)
{
    u32 before = events[0];

    evtchn_send(ports[to]);
    if (!halting) {
        while (events[0] == before)
            cpu_relax();
        return;
    }
    irq_disable();
    while (events[0] == before)
        irq_wait();
    irq_enable();
}

static void run(const char *kind, unsigned int to, unsigned int n)
{
    struct summary s;

    irq_enable();
    for (unsigned int i = 0; i < n + WARM_UP; i++) {
        u64 start = rdtsc();

        round_trip(to);
        if (i >= WARM_UP)
            cycles[i - WARM_UP] = (u32)(rdtsc() - start);
    }
    irq_disable();
    s = summarize(cycles, n);
    printk("bench_evtchn: %s n=%u ns=%u least=%u of_ten=%u\n", kind, n, s.median, s.least, s.most_of_ten);
}

void test_main(void)
{
    ulong n = cmdline_number("n", 2000);

    if (!n || n > MOST)
        error("n=%lu is not between 1 and %u", n, MOST);
    if (vcpu_count() < 2)
        skip("needs two vCPUs");
    shared_info_map();
    evtchn_mask_all();
    for (u32 i = 0; i < 2; i++) {
        if (evtchn_bind_ipi(i, &ports[i]))
            error("no IPI port");
        evtchn_unmask_bit(ports[i]);
    }
    upcall_enable();
    set_handler(VECTOR_UPCALL, take);
    run("self", 0, (unsigned int)n);
    answering = true;
    if (vcpu_start(1, second))
        error("no second vCPU");
    run("spinning", 1, (unsigned int)n);
    halting = true;
    run("halted", 1, (unsigned int)n);
    vcpu_op(VCPUOP_down, 1, NULL);
    upcall_disable();
    success();
}
