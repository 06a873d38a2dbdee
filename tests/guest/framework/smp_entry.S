/*
 * The first instructions of a further vCPU: the real-mode trampoline for SIPI, then the common
 * 32-bit start for both ways.
 */
#include "layout.h"

    .section .text.smp, "ax", @progbits
    .code16
    .globl trampoline_start, trampoline_end
trampoline_start:
    cli
    /* The page is copied elsewhere: only absolute addresses above 64 KiB and CS work here. */
    lgdtl %cs:(trampoline_gdt - trampoline_start)
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $SEL_CODE32, $secondary_start
trampoline_gdt:
    .word 0x47
    .long gdt
trampoline_end:

    .code32
    .globl secondary_start
secondary_start:
    lgdt gdt_descriptor
    ljmp $SEL_CODE32, $1f
1:  movl $SEL_DATA, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %eax, %fs
    movl %eax, %gs
    movl secondary_stack, %esp
    call enter_mode
#ifdef __x86_64__
    ljmp $SEL_CODE64, $2f
    .code64
2:
#endif
    call secondary_main
    ud2

#ifdef __x86_64__
/* Where a vCPU begins that VCPUOP_initialise puts into 64-bit mode, with the caller's tables. */
    .globl secondary_start64
secondary_start64:
    lgdt gdt_descriptor
    pushq $SEL_CODE64
    pushq $3f
    lretq
3:  movl $SEL_DATA, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %eax, %fs
    movl %eax, %gs
    movq secondary_stack, %rsp
    call secondary_main
    ud2
#endif

    .section .note.GNU-stack, "", @progbits
