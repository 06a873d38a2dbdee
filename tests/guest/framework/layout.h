/*
 * Constants that both the assembly and the C of the framework need:
 * selectors, fixed virtual addresses, vectors and the entry record.
 */
#ifndef GUEST_LAYOUT_H
#define GUEST_LAYOUT_H

/* GDT. The user selectors carry RPL 3. */
#define SEL_CODE32 0x08
#define SEL_CODE64 0x10
#define SEL_DATA 0x18
#define SEL_USER_CODE32 0x23
#define SEL_USER_CODE64 0x2b
#define SEL_USER_DATA 0x33
#define SEL_TSS 0x38

#ifdef __x86_64__
#define SEL_CODE SEL_CODE64
#define SEL_USER_CODE SEL_USER_CODE64
#else
#define SEL_CODE SEL_CODE32
#define SEL_USER_CODE SEL_USER_CODE32
#endif

/*
 * With paging on, everything below 4 GiB is mapped to itself, readable, writable, executable and
 * open to CPL 3, except for page 0 (under Xen a NULL pointer faults; other loaders put start_info
 * there) and the window: 4 MiB of 4 KiB entries that start absent and that a test maps as it likes.
 * No PVH layout puts RAM at the window.
 */
#define WINDOW_VA 0xe0000000
#define WINDOW_PAGES 1024

#define VECTOR_USER_RETURN 0x81
#define VECTOR_UPCALL 0xf3

/* struct entry_state, as boot.S fills it: 32-bit words, in this order. */
#define ENTRY_EAX 0
#define ENTRY_EBX 4
#define ENTRY_ECX 8
#define ENTRY_EDX 12
#define ENTRY_ESI 16
#define ENTRY_EDI 20
#define ENTRY_EBP 24
#define ENTRY_ESP 28
#define ENTRY_EIP 32
#define ENTRY_EFLAGS 36
#define ENTRY_CR0 40
#define ENTRY_CR2 44
#define ENTRY_CR3 48
#define ENTRY_CR4 52
#define ENTRY_DR6 56
#define ENTRY_DR7 60
#define ENTRY_EFER 64
#define ENTRY_SEL 68 /* cs ds es ss fs gs tr ldt */
#define ENTRY_LAR 100
#define ENTRY_LSL 132
#define ENTRY_GDTR 164 /* limit, base */
#define ENTRY_IDTR 172
#define ENTRY_SIZE 180

#endif
