/*
 * smp_vcpuop: a second vCPU by VCPUOP_initialise and VCPUOP_up.
 *
 * Purpose: it starts with the registers of struct vcpu_hvm_context, runs at the same time as the
 * first, takes exceptions of its own, and goes down and stays initialised.
 * Blind spots: VCPU_HVM_MODE_64B; the checks on the context's segments, beyond an all-zero one.
 *
 * Options: --vcpus 2
 */
#include "guest.h"

const char test_title[] = "Second vCPU by VCPUOP_initialise";

static volatile u32 ran, echo, ask, trap = 99, id = 99;

static void undefined(void *arg)
{
    (void)arg;
    asm volatile("ud2");
}

static void second(void)
{
    id = cpuid(xen_leaf + 4).ebx;
    trap = (u32)trap_of(undefined, NULL);
    ran++;
    for (;;)
        echo = ask;
}

static bool answers(u32 question)
{
    ask = question;
    for (u64 end = system_time() + MILLISECONDS(2000); system_time() < end;)
        if (echo == question)
            return true;
    return false;
}

void test_main(void)
{
    static struct vcpu_hvm_context zero = {.mode = VCPU_HVM_MODE_32B};
    struct vcpu_runstate_info state;

    if (vcpu_count() < 2)
        skip("needs two vCPUs");
    shared_info_map();
    evtchn_mask_all();

    call("VCPUOP_is_up");
    check_rc("vcpu.is_up.99", vcpu_op(VCPUOP_is_up, 99, NULL), -XEN_ENOENT);
    check_rc("vcpu.op.3.vcpu0.null", vcpu_op(VCPUOP_is_up, 0, NULL), 1);
    check_rc("vcpu.is_up.1", vcpu_op(VCPUOP_is_up, 1, NULL), 0);
    call("VCPUOP_initialise");
    check_rc("vcpu.init.zero32", vcpu_op(VCPUOP_initialise, 1, &zero), -XEN_EINVAL);
    check_rc("vcpu.is_up.1.init", vcpu_op(VCPUOP_is_up, 1, NULL), 0);

    check_rc("vcpu_start", vcpu_start(1, second), 0);
    call("VCPUOP_up");
    for (u64 end = system_time() + MILLISECONDS(2000); !ran && system_time() < end;)
        cpu_relax();
    check_signed("vcpu.1.ran", (long)ran, 1);
    check_signed("vCPU id of leaf 4", (long)id, 1);
    check_signed("#UD on vCPU 1", (long)trap, X86_EXC_UD);
    check_rc("up", vcpu_op(VCPUOP_is_up, 1, NULL), 1);
    check_rc("vcpu.up.1.again", vcpu_op(VCPUOP_up, 1, NULL), 0);
    for (u32 i = 1; i <= 100; i++)
        if (!answers(i)) {
            failure("vCPU 1 stopped at question %u", i);
            break;
        }

    call("VCPUOP_down");
    check_rc("vcpu.down.1", vcpu_op(VCPUOP_down, 1, NULL), 0);
    check_rc("down", vcpu_op(VCPUOP_is_up, 1, NULL), 0);
    check_rc("vcpu.init.after_down", vcpu_op(VCPUOP_initialise, 1, &zero), -XEN_EEXIST);
    call("VCPUOP_get_runstate_info");
    check_rc("runstate", vcpu_op(VCPUOP_get_runstate_info, 1, &state), 0);
    check_signed("runstate of a vCPU that is down", state.state, RUNSTATE_offline);
    call("VCPUOP_up");
    check_rc("up once more", vcpu_op(VCPUOP_up, 1, NULL), 0);
    check_true("it goes on where it was", answers(1000));
    success();
}
