/*
 * Interrupt and exception stubs, the way to CPL 3 and back, and the two halves of a non-local jump.
 * The frame that the stubs build is struct regs of traps.h.
 */
#include "layout.h"

    .section .text.trap_stubs, "ax", @progbits
    .balign 16
    .globl trap_stubs
trap_stubs:
    .set vector, 0
    .rept 256
    .balign 16
    /* 8, 10 to 14, 17, 21, 29 and 30 push an error code of their own. */
    .if vector > 31 || !((0x60227d00 >> vector) & 1)
    push $0
    .endif
    push $vector
    jmp trap_common
    .set vector, vector + 1
    .endr

trap_common:
    cld
#ifdef __x86_64__
    push %rax
    push %rcx
    push %rdx
    push %rbx
    push %rbp
    push %rsi
    push %rdi
    push %r8
    push %r9
    push %r10
    push %r11
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, %rdi
    call trap_dispatch
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rdi
    pop %rsi
    pop %rbp
    pop %rbx
    pop %rdx
    pop %rcx
    pop %rax
    add $16, %rsp
    iretq
#else
    push %eax
    push %ecx
    push %edx
    push %ebx
    push %ebp
    push %esi
    push %edi
    push %esp
    call trap_dispatch
    add $4, %esp
    pop %edi
    pop %esi
    pop %ebp
    pop %ebx
    pop %edx
    pop %ecx
    pop %eax
    add $8, %esp
    iretl
#endif

/*
 * int context_save(struct context *): 0 now, and the value given to context_restore() later.
 * void context_restore(struct context *, int value). Flags are kept too: a jump out of an
 * interrupt gate would otherwise leave interrupts off.
 */
    .globl context_save, context_restore
#ifdef __x86_64__
context_save:
    mov %rbx, 0(%rdi)
    mov %rbp, 8(%rdi)
    mov %r12, 16(%rdi)
    mov %r13, 24(%rdi)
    mov %r14, 32(%rdi)
    mov %r15, 40(%rdi)
    lea 8(%rsp), %rax
    mov %rax, 48(%rdi)
    mov (%rsp), %rax
    mov %rax, 56(%rdi)
    pushf
    pop %rax
    mov %rax, 64(%rdi)
    xor %eax, %eax
    ret
context_restore:
    mov %esi, %eax
    mov 0(%rdi), %rbx
    mov 8(%rdi), %rbp
    mov 16(%rdi), %r12
    mov 24(%rdi), %r13
    mov 32(%rdi), %r14
    mov 40(%rdi), %r15
    mov 48(%rdi), %rsp
    mov 56(%rdi), %rdx
    mov 64(%rdi), %rcx
    push %rcx
    popf
    jmp *%rdx
#else
context_save:
    mov 4(%esp), %ecx
    mov %ebx, 0(%ecx)
    mov %ebp, 4(%ecx)
    mov %esi, 8(%ecx)
    mov %edi, 12(%ecx)
    lea 4(%esp), %eax
    mov %eax, 16(%ecx)
    mov (%esp), %eax
    mov %eax, 20(%ecx)
    pushf
    pop %eax
    mov %eax, 24(%ecx)
    xor %eax, %eax
    ret
context_restore:
    mov 8(%esp), %eax
    mov 4(%esp), %ecx
    mov 0(%ecx), %ebx
    mov 4(%ecx), %ebp
    mov 8(%ecx), %esi
    mov 12(%ecx), %edi
    mov 16(%ecx), %esp
    mov 20(%ecx), %edx
    push 24(%ecx)
    popf
    jmp *%edx
#endif

/*
 * void enter_user(ulong (*fn)(ulong), ulong arg, ulong stack_top): runs fn(arg) at CPL 3. It comes
 * back through VECTOR_USER_RETURN with the result in xAX, which traps.c turns into a jump.
 */
    .globl enter_user
#ifdef __x86_64__
enter_user:
    mov %rdi, %rax
    mov %rsi, %rdi
    push $SEL_USER_DATA
    push %rdx
    pushf
    push $SEL_USER_CODE
    lea user_start(%rip), %rdx
    push %rdx
    iretq
user_start:
    call *%rax
    int $VECTOR_USER_RETURN
    ud2
#else
enter_user:
    mov 4(%esp), %eax
    mov 8(%esp), %ecx
    mov 12(%esp), %edx
    push $SEL_USER_DATA
    push %edx
    pushf
    push $SEL_USER_CODE
    push $user_start
    mov $SEL_USER_DATA, %edx
    mov %edx, %ds
    mov %edx, %es
    iretl
user_start:
    push %ecx
    call *%eax
    int $VECTOR_USER_RETURN
    ud2
#endif

    .section .note.GNU-stack, "", @progbits
