/*
 * The frame around a test: start-up, verdict, shutdown.
 */
#include "guest.h"

enum verdict { NONE, SUCCESS, SKIP, ERROR, FAILURE };
static const char *const verdict_name[] = {"ERROR", "SUCCESS", "SKIP", "ERROR", "FAILURE"};

const struct hvm_start_info *start_info;

static enum verdict verdict;

/* The call that is being checked, and what its checks came to. */
static const char *call_name;
static enum verdict call_verdict;

void guest_start(void);

static void give(enum verdict v, const char *word, const char *fmt, va_list args)
{
    char text[400];

    vsnprintk(text, sizeof(text), fmt, args);
    printk("%s: %s\n", word, text);
    if (v > verdict)
        verdict = v;
    if (v > call_verdict)
        call_verdict = v;
}

void call(const char *name)
{
    if (call_name)
        printk("Call: %s %s\n", call_name, verdict_name[call_verdict]);
    call_name = name;
    call_verdict = SUCCESS;
}

/* QEMU's q35 powers off by this port; it serves bare runs, where there is no SCHEDOP_shutdown. */
static NORETURN void machine_off(void)
{
    outw(0x604, 0x2000);
    for (;;)
        asm volatile("cli; hlt");
}

static NORETURN void finish(void)
{
    call(NULL);
    if (verdict == NONE)
        printk("Error: the test ended without a verdict\n");
    printk("Test result: %s\n", verdict_name[verdict]);
    if (!xen_present)
        machine_off();
    for (unsigned int i = 0; i < 1000 && !console_drained(); i++)
        sched_op(SCHEDOP_yield, NULL);
    sched_shutdown(SHUTDOWN_poweroff);
}

void guest_crash(void)
{
    if (!xen_present)
        machine_off();
    console_flush();
    for (unsigned int i = 0; i < 1000 && !console_drained(); i++)
        sched_op(SCHEDOP_yield, NULL);
    sched_shutdown(SHUTDOWN_crash);
}

void success(void)
{
    if (verdict < SUCCESS)
        verdict = SUCCESS;
}

void failure(const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    give(FAILURE, "Failure", fmt, args);
    va_end(args);
}

void skip(const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    give(SKIP, "Skip", fmt, args);
    va_end(args);
    finish();
}

void error(const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    give(ERROR, "Error", fmt, args);
    va_end(args);
    finish();
}

void check_signed(const char *what, long got, long want)
{
    if (got != want)
        failure("%s: got %ld, want %ld", what, got, want);
}

void check_hex(const char *what, u64 got, u64 want)
{
    if (got != want)
        failure("%s: got 0x%llx, want 0x%llx", what, (unsigned long long)got, (unsigned long long)want);
}

void check_true(const char *what, bool ok)
{
    if (!ok)
        failure("%s: not so", what);
}

void guest_start(void)
{
    start_info = (const struct hvm_start_info *)(ulong)entry_state.ebx;
    traps_init();
    xen_detect();
    if (xen_present) {
        console_init();
#if HAVE_PAGING
        null_unmap();
#endif
    }
    printk("%s (" GUEST_VARIANT ")\n", test_title);
    if (!xen_present && !test_bare)
        error("no Xen CPUID leaves");
    test_main();
    finish();
}
