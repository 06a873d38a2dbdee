/*
 * What the parts of the guest "answers" share: how an answer is printed, and the state that
 * earlier questions leave to later ones.
 */
#ifndef ANSWERS_H
#define ANSWERS_H

#include "guest.h"
#include "layout.h"

/* One line "NAME<TAB>answer". name() formats a name that holds a number; it is good for one use. */
const char *name(const char *fmt, ...) PRINTF_LIKE;
void answer(const char *question, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
#define answer_rc(question, rc) answer(question, "%ld", (long)(rc))
#define zero_or_not(value) ((value) ? "nonzero" : "zero")
#define yes_or_no(value) ((value) ? "yes" : "no")
/* "trap:value", with -1 for no trap. */
void answer_read(const char *question, const volatile void *address);

/* The sections, in the order of the recorded answers. */
void ask_boot(void);
void ask_acpi(void);
void ask_cpuid(void);
void ask_machine(void);
void ask_hypercalls(void);
void ask_version(void);
void ask_hvm(void);
void ask_memory(void);
void ask_events(void);
void ask_grants(void);
void ask_vcpus(void);
void ask_refused(void);
void ask_time(void);
void ask_fifo(void);
void ask_apic(void);

extern domid_t own;

/* Pointers that lead nowhere: not mapped, and mapped to a guest frame without memory. */
void *unmapped(void);
void *noram(void);
#define NOBODY 4444

/* Where vcpu_info lies, also once VCPUOP_register_vcpu_info moved it. */
extern struct vcpu_info *vcpu_infos[2];
/* System time in nanoseconds by the first vCPU's record. */
u64 now(void);
/* Clears a vCPU's selector and upcall_pending. */
void calm(unsigned int vcpu);

/* Event channels. */
int bind_vcpu(evtchn_port_t port, u32 vcpu);
void answer_status(const char *question, domid_t dom, evtchn_port_t port);
void answer_bits(const char *question, evtchn_port_t port);
/* A loop of the domain with itself: an event sent on `near` arrives at `far`. */
struct loop {
    evtchn_port_t near, far;
};
struct loop make_loop(void);
void close_loop(struct loop loop);
void set_pending(evtchn_port_t port);
#define UPCALL_VECTOR VECTOR_UPCALL
extern volatile u32 upcall_count;
/* Counts upcalls by that vector; the handler clears what is pending in the two-level ABI. */
void count_upcalls(unsigned int vector);
/* Only lowers upcall_pending. */
void count_upcalls_only(unsigned int vector);
void set_callback_vector(u8 vector);
/* Lets interrupts in for a moment. */
void interrupt_window(void);

/* The registered time record of vCPU 0 (vcpus.c), for ask_time(). */
extern volatile struct vcpu_time_info time_area;

#endif
