/*
 * What a test guest includes. A guest is one C file with test_title and test_main(); it gives its
 * verdict by success(), failure(), skip() or error(), and test_main() then returns.
 */
#ifndef GUEST_H
#define GUEST_H

#include "x86.h"

#include <xen/xen.h>
#include <xen/arch-x86/cpuid.h>
#include <xen/arch-x86/hvm/start_info.h>
#include <xen/elfnote.h>
#include <xen/errno.h>
#include <xen/event_channel.h>
#include <xen/features.h>
#include <xen/grant_table.h>
#include <xen/hvm/hvm_op.h>
#include <xen/hvm/hvm_vcpu.h>
#include <xen/hvm/params.h>
#include <xen/io/console.h>
#include <xen/memory.h>
#include <xen/physdev.h>
#include <xen/sched.h>
#include <xen/vcpu.h>
#include <xen/version.h>

#include "hypercall.h"
#include "traps.h"

/* From the guest's own file. A bare test also makes sense on a machine without Xen. */
extern const char test_title[];
extern const bool test_bare;
void test_main(void);

/*
 * Verdicts (report.c), named as in the Xen Test Framework. The worst one given counts:
 * SUCCESS < SKIP < ERROR < FAILURE. skip() and error() end the guest, the others return.
 *   skip     what the test needs is not there
 *   error    the test itself could not run as meant
 *   failure  the thing under test answered wrongly
 */
#define PRINTF_LIKE __attribute__((format(printf, 1, 2)))
void success(void);
void failure(const char *fmt, ...) PRINTF_LIKE;
void skip(const char *fmt, ...) PRINTF_LIKE NORETURN;
void error(const char *fmt, ...) PRINTF_LIKE NORETURN;
/* Ends the guest as crashed, without a verdict line. */
void guest_crash(void) NORETURN;

/*
 * The checks from here to the next call() are of this hypercall or sub-operation, named as in the
 * headers (or, where it has no name there, as hvmlite's own table names it). tests/guest/calls.py
 * makes a table of them; it also finds the names in the sources, so they are literals.
 */
void call(const char *name);

/* One failure line unless the two are equal; `what` is the recorded answer's own name if it has one. */
void check_signed(const char *what, long got, long want);
void check_hex(const char *what, u64 got, u64 want);
void check_true(const char *what, bool ok);
#define check_rc(what, got, want) check_signed(what, (long)(got), (long)(want))

/* printk knows d u x c s p, with l, ll, 0, - and a width. */
void printk(const char *fmt, ...) PRINTF_LIKE;
int vsnprintk(char *buf, size_t size, const char *fmt, va_list args);

/* Console (console.c). */
extern volatile struct xencons_interface *console_ring;
extern evtchn_port_t console_port;
void console_init(void);
void console_write(const char *text, size_t len);
void console_flush(void);
bool console_drained(void);

/* lib.c */
void *memset(void *to, int byte, size_t n);
void *memcpy(void *to, const void *from, size_t n);
void *memmove(void *to, const void *from, size_t n);
int memcmp(const void *a, const void *b, size_t n);
size_t strlen(const char *s);
int strncmp(const char *a, const char *b, size_t n);
u64 div_u64(u64 dividend, u32 divisor, u32 *remainder);
u64 mul_shift_32(u64 value, u32 factor);

/* Boot (boot.S): how the domain builder left the first vCPU. */
struct entry_state {
    u32 eax, ebx, ecx, edx, esi, edi, ebp, esp, eip, eflags;
    u32 cr0, cr2, cr3, cr4, dr6, dr7, efer;
    u32 sel[8], lar[8], lsl[8];
    u32 gdtr_limit, gdtr_base, idtr_limit, idtr_base;
};
enum { SEG_CS, SEG_DS, SEG_ES, SEG_SS, SEG_FS, SEG_GS, SEG_TR, SEG_LDT };
extern struct entry_state entry_state;
extern const struct hvm_start_info *start_info;
/* The memory map, from start_info or else by XENMEM_memory_map. */
const struct hvm_memmap_table_entry *memmap(u32 *entries);
const char *cmdline(void);
/* The number after "name=" on the command line, or `otherwise`. */
ulong cmdline_number(const char *name, ulong otherwise);

/* Memory (memory.c). Guest-physical and virtual addresses are the same below 4 GiB. */
void *alloc_pages(unsigned int count);
/* A guest frame that no RAM, ACPI table or special page uses. */
ulong alloc_hole(unsigned int count);
#define HAVE_PAGING (CONFIG_PAGING != 0)
#define PTE_PRESENT 1ul
#define PTE_WRITE 2ul
#define PTE_USER 4ul
#if HAVE_PAGING
void null_unmap(void);
/* Maps one page of the window; flags 0 takes it away. Returns its virtual address. */
void *window_map(unsigned int slot, u64 pa, ulong flags);
#endif

/* Xen (xen.c). */
extern bool xen_present;
extern u32 xen_leaf;
void xen_detect(void);
int hvm_param_get(u32 index, u64 *value);
int hvm_param_set(u32 index, u64 value);
extern struct shared_info *shared_info;
/* Maps shared_info once. */
void shared_info_map(void);
int add_to_physmap(unsigned int space, ulong index, ulong gfn);
unsigned int vcpu_count(void);
void sched_shutdown(unsigned int reason) NORETURN;

/* Two-level event channels (evtchn.c); each returns 0 or a negative errno. */
int evtchn_alloc_unbound(domid_t dom, domid_t remote, evtchn_port_t *port);
int evtchn_bind_interdomain(domid_t remote, evtchn_port_t remote_port, evtchn_port_t *port);
int evtchn_bind_virq(u32 virq, u32 vcpu, evtchn_port_t *port);
int evtchn_bind_ipi(u32 vcpu, evtchn_port_t *port);
int evtchn_send(evtchn_port_t port);
int evtchn_close(evtchn_port_t port);
int evtchn_unmask(evtchn_port_t port);
int evtchn_status(domid_t dom, evtchn_port_t port, struct evtchn_status *status);
/* Found by a port that the domain keeps for itself: Xen shows the number there. */
domid_t own_domid(void);
bool evtchn_pending(evtchn_port_t port);
bool evtchn_masked(evtchn_port_t port);
void evtchn_clear(evtchn_port_t port);
void evtchn_mask(evtchn_port_t port);
void evtchn_mask_all(void);
/* Clears the mask bit only; evtchn_unmask() asks Xen, which also delivers what is pending. */
void evtchn_unmask_bit(evtchn_port_t port);
/* Sleeps until the port is pending or the time (system time in ns, 0: for ever) has come. */
int evtchn_poll(evtchn_port_t port, u64 deadline);
/* Asks for upcalls by vector; needs no local APIC. The handler counts and clears what came. */
void upcall_enable(void);
void upcall_disable(void);
extern volatile u32 upcalls;
extern volatile u32 upcall_events[1024];

/* Time (clock.c): nanoseconds of Xen system time, by shared_info and the TSC. */
u64 system_time(void);
struct vcpu_time_info time_info(unsigned int vcpu);
u64 tsc_to_ns(const struct vcpu_time_info *t, u64 tsc);
#define MILLISECONDS(n) ((n) * 1000000ull)

/* Grant table, version 1 (grant.c). */
struct grant_entry_v1 *grant_table_map(unsigned int frames);
void grant_access(grant_ref_t ref, domid_t domid, ulong gfn, bool readonly);

/* Further vCPUs (smp.c). fn runs there with interrupts off and must not return. */
int vcpu_start(unsigned int vcpu, void (*fn)(void));
/* The same from real mode, or straight into 64-bit mode (in a 64-bit guest). */
enum vcpu_mode { VCPU_PROTECTED, VCPU_REAL, VCPU_LONG };
int vcpu_start_in(enum vcpu_mode mode, unsigned int vcpu, void (*fn)(void));
/* The first half of it; VCPUOP_up starts fn. */
int vcpu_initialise(unsigned int vcpu, void (*fn)(void));
void vcpu_start_sipi(unsigned int vcpu, u32 apic_id, void (*fn)(void));

#endif
