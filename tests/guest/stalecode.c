/*
 * stalecode: runs a page of code that the host rewrites from outside.
 *
 * Purpose: the guest half of the stale-code acceptance: after a write to guest memory by the VMM
 * the new code must run, on one vCPU and on two, whether the guest waits or keeps executing.
 * Blind spots: judges nothing itself; the host-side test compares what ran with what it wrote.
 *
 * Protocol. The guest prints one line
 *   stalecode: control=0xADDRESS code_page=0xADDRESS vcpus=N
 * (guest-physical addresses, both page-aligned; they are also the ELF symbols `control` and
 * `code_page`) and then serves struct control, all words 32-bit and naturally aligned:
 *   0x00 magic         0x51a1ec0d once the guest is ready
 *   0x04 mode          host: 0 wait, 1 hammer (below)
 *   0x08 stop          host: not 0 ends the guest with SUCCESS
 *   0x0c vcpus         guest: how many vCPUs run the page
 *   0x40 + 0x40 * v    vCPU v's lane:
 *     +0x00 request    host: bumped after the page has been rewritten
 *     +0x04 done       guest: set to `request` after the results are stored
 *     +0x08 ebx        guest: EBX and ECX as the page left them in the first call that began
 *     +0x0c ecx          after `request` was seen
 *     +0x10 trap       guest: -1, or the vector of an exception in that call
 *     +0x14 calls      guest: every call so far
 *     +0x18 torn       guest: calls of the hammer, outside requests, that ended in an exception or
 *                        with ecx != (ebx ^ 0x5a5a): seen while a rewrite is under way
 * To test: write the page, bump the lane's request, wait until done == request, compare.
 *
 * The page begins with code that is called, may use EAX, EBX, ECX, EDX, ESI, EDI, and returns; the
 * same bytes do for 32- and 64-bit guests:
 *   bb imm32           mov $k, %ebx
 *   e9 rel32           jmp to one of several offsets in the page
 *   ...
 *   b9 imm32           mov $(k ^ 0x5a5a), %ecx
 *   c3                 ret
 * Bytes in between are best 0xcc: a call that sees half a rewrite then ends in an exception, which
 * the guest survives. As linked, the page holds such code with k = 0.
 *
 * Mode wait: between looks at `request` the guest makes a SCHEDOP_yield. Mode hammer: it calls the
 * page all the time and makes no hypercall at all. The second vCPU, if there is one, is started by
 * VCPUOP_initialise and always hammers.
 *
 * Driven by: the host-side test of stale code
 */
#include "guest.h"

const char test_title[] = "Code rewritten by the host";

#define MAGIC 0x51a1ec0du
#define LANES 2

struct lane {
    u32 request, done, ebx, ecx;
    s32 trap;
    u32 calls, torn;
    u32 pad[9];
};

struct control {
    u32 magic, mode, stop, vcpus;
    u32 pad[12];
    struct lane lane[LANES];
};
_Static_assert(offsetof(struct control, lane) == 0x40 && sizeof(struct lane) == 0x40, "protocol");

volatile struct control control PAGE_ALIGNED;
u8 code_page[4096] PAGE_ALIGNED = {0xbb, 0, 0, 0, 0, 0xb9, 0x5a, 0x5a, 0, 0, 0xc3};

struct outcome {
    u32 ebx, ecx;
};

static void run_page(void *arg)
{
    struct outcome *o = arg;
    ulong ax, bx = 0, cx = 0, dx, si, di;

    asm volatile("call code_page" : "=a"(ax), "+b"(bx), "+c"(cx), "=d"(dx), "=S"(si), "=D"(di)::"memory");
    o->ebx = (u32)bx;
    o->ecx = (u32)cx;
}

static void serve(volatile struct lane *lane, bool always_hammer)
{
    while (!control.stop) {
        u32 request = lane->request;
        bool asked = request != lane->done;
        struct outcome o = {0, 0};
        int trap;

        if (!asked && !always_hammer && !control.mode) {
            sched_op(SCHEDOP_yield, NULL);
            continue;
        }
        trap = trap_of(run_page, &o);
        lane->calls++;
        if (asked) {
            lane->ebx = o.ebx;
            lane->ecx = o.ecx;
            lane->trap = trap;
            barrier();
            lane->done = request;
        } else if (trap != -1 || o.ecx != (o.ebx ^ 0x5a5a)) {
            lane->torn++;
        }
    }
}

static void second_vcpu(void)
{
    serve(&control.lane[1], true);
    for (;;)
        asm volatile("cli; hlt");
}

void test_main(void)
{
    unsigned int vcpus = vcpu_count() > 1 ? 2 : 1;

    control.vcpus = vcpus;
    if (vcpus > 1) {
        int rc = vcpu_start(1, second_vcpu);

        if (rc)
            error("vCPU 1 does not start: %d", rc);
    }
    printk("stalecode: control=0x%lx code_page=0x%lx vcpus=%u\n", (ulong)&control, (ulong)code_page, vcpus);
    control.magic = MAGIC;
    serve(&control.lane[0], false);
    success();
}
