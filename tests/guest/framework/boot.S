/*
 * PVH entry: records the state that the domain builder left, then enters the variant's mode and
 * calls guest_start(). Facts: the Xen documentation's "x86/HVM direct boot ABI" and elfnote.h.
 * CONFIG_PAGING is 0, 2, 3 or 4: the levels of page table.
 */
#include <xen/elfnote.h>
#include "layout.h"

#define PTE_P 0x1
#define PTE_RW 0x2
#define PTE_USER 0x4
#define PTE_PSE 0x80
#define PTE_TABLE (PTE_P | PTE_RW | PTE_USER)
#define PTE_BIG (PTE_TABLE | PTE_PSE)

    .section .note.Xen, "a", @note
    .balign 4
    .long 4, 4, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long _start

    .section .text.boot, "ax", @progbits
    .code32
    .globl _start
_start:
    movl %eax, entry_state + ENTRY_EAX
    movl %ebx, entry_state + ENTRY_EBX
    movl %ecx, entry_state + ENTRY_ECX
    movl %edx, entry_state + ENTRY_EDX
    movl %esi, entry_state + ENTRY_ESI
    movl %edi, entry_state + ENTRY_EDI
    movl %ebp, entry_state + ENTRY_EBP
    movl %esp, entry_state + ENTRY_ESP

    /* SS comes with the entry state: this push also proves that it is a usable flat segment. */
    movl $boot_stack_top, %esp
    pushfl
    popl entry_state + ENTRY_EFLAGS
    cli
    cld

    /* A wrong CS base shows as an address other than the linked one. */
    call 1f
1:  popl %eax
    subl $(1b - _start), %eax
    movl %eax, entry_state + ENTRY_EIP

    movl %cr0, %eax
    movl %eax, entry_state + ENTRY_CR0
    movl %cr2, %eax
    movl %eax, entry_state + ENTRY_CR2
    movl %cr3, %eax
    movl %eax, entry_state + ENTRY_CR3
    movl %cr4, %eax
    movl %eax, entry_state + ENTRY_CR4
    movl %dr6, %eax
    movl %eax, entry_state + ENTRY_DR6
    movl %dr7, %eax
    movl %eax, entry_state + ENTRY_DR7
    movl $0xc0000080, %ecx
    rdmsr
    movl %eax, entry_state + ENTRY_EFER

    xorl %eax, %eax
    movl %cs, %eax
    movl %eax, entry_state + ENTRY_SEL
    movl %ds, %eax
    movl %eax, entry_state + ENTRY_SEL + 4
    movl %es, %eax
    movl %eax, entry_state + ENTRY_SEL + 8
    movl %ss, %eax
    movl %eax, entry_state + ENTRY_SEL + 12
    movl %fs, %eax
    movl %eax, entry_state + ENTRY_SEL + 16
    movl %gs, %eax
    movl %eax, entry_state + ENTRY_SEL + 20
    xorl %eax, %eax
    str %ax
    movl %eax, entry_state + ENTRY_SEL + 24
    sldt %ax
    movl %eax, entry_state + ENTRY_SEL + 28

    /* LAR and LSL look the selector up in the GDT: a null selector leaves ZF clear. */
    xorl %ecx, %ecx
2:  movl entry_state + ENTRY_SEL(, %ecx, 4), %edx
    larl %edx, %eax
    jz 3f
    movl $-1, %eax
3:  movl %eax, entry_state + ENTRY_LAR(, %ecx, 4)
    lsll %edx, %eax
    jz 4f
    movl $-1, %eax
4:  movl %eax, entry_state + ENTRY_LSL(, %ecx, 4)
    incl %ecx
    cmpl $8, %ecx
    jb 2b

    /* SGDT stores a 16-bit limit and then the base. */
    sgdt entry_state + ENTRY_GDTR + 2
    movzwl entry_state + ENTRY_GDTR + 2, %eax
    movl %eax, entry_state + ENTRY_GDTR
    sidt entry_state + ENTRY_IDTR + 2
    movzwl entry_state + ENTRY_IDTR + 2, %eax
    movl %eax, entry_state + ENTRY_IDTR

    /*
     * The segments must reach 4 GiB: a shorter limit faults here, and without an IDT that is the
     * end. The address is the console page of the usual layout, so that nothing is emulated.
     */
    movl %cs:0xfefffffc, %eax
    movl %ds:0xfefffffc, %eax
    movl %es:0xfefffffc, %eax
    movl %ss:0xfefffffc, %eax

    lgdt gdt_descriptor
    ljmp $SEL_CODE32, $5f
5:  movl $SEL_DATA, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %eax, %fs
    movl %eax, %gs

#if CONFIG_PAGING
    call build_page_tables
#endif
    call enter_mode
#ifdef __x86_64__
    ljmp $SEL_CODE64, $6f
    .code64
6:  movl $boot_stack_top, %esp
    xorl %ebp, %ebp
    call guest_start
#else
    movl $boot_stack_top, %esp
    xorl %ebp, %ebp
    call guest_start
#endif
    ud2

/*
 * Turns the variant's paging on. Called with flat 32-bit segments on a boot or a secondary vCPU;
 * in the 64-bit variant it returns in compatibility mode.
 */
    .code32
    .globl enter_mode
enter_mode:
#if CONFIG_PAGING >= 3
    movl %cr4, %eax
    orl $(1 << 5), %eax             /* PAE */
    movl %eax, %cr4
#elif CONFIG_PAGING == 2
    movl %cr4, %eax
    orl $(1 << 4), %eax             /* PSE */
    movl %eax, %cr4
#endif
#if CONFIG_PAGING
    movl $top_table, %eax
    movl %eax, %cr3
#endif
#if CONFIG_PAGING >= 3
    movl $0x80000001, %eax
    cpuid
    movl $0xc0000080, %ecx
    movl %edx, %esi
    rdmsr
    testl $(1 << 20), %esi
    jz 1f
    orl $(1 << 11), %eax            /* NXE */
1:
#ifdef __x86_64__
    orl $(1 << 8), %eax             /* LME */
#endif
    wrmsr
#endif
#if CONFIG_PAGING
    movl %cr0, %eax
    orl $0x80010000, %eax           /* PG, WP */
    movl %eax, %cr0
#endif
    ret

#if CONFIG_PAGING
build_page_tables:
#if CONFIG_PAGING >= 3
    /* 2048 large pages of 2 MiB, then the two ranges that need 4 KiB entries. */
    movl $PTE_BIG, %eax
    xorl %ecx, %ecx
1:  movl %eax, page_directories(, %ecx, 8)
    movl $0, page_directories + 4(, %ecx, 8)
    addl $0x200000, %eax
    incl %ecx
    cmpl $2048, %ecx
    jb 1b
    movl $low_table + PTE_TABLE, page_directories
    movl $window_table + PTE_TABLE, page_directories + (WINDOW_VA >> 21) * 8
    movl $window_table + 4096 + PTE_TABLE, page_directories + (WINDOW_VA >> 21) * 8 + 8
    movl $PTE_TABLE, %eax
    xorl %ecx, %ecx
2:  movl %eax, low_table(, %ecx, 8)
    addl $4096, %eax
    incl %ecx
    cmpl $512, %ecx
    jb 2b
#if CONFIG_PAGING == 3
    /* In a PAE page-directory-pointer entry the RW and USER bits are reserved. */
#define PDPTE_FLAGS PTE_P
    .set pointers, top_table
#else
#define PDPTE_FLAGS PTE_TABLE
    .set pointers, pointer_table
    movl $pointer_table + PTE_TABLE, top_table
#endif
    movl $page_directories + PDPTE_FLAGS, pointers
    movl $page_directories + 4096 + PDPTE_FLAGS, pointers + 8
    movl $page_directories + 8192 + PDPTE_FLAGS, pointers + 16
    movl $page_directories + 12288 + PDPTE_FLAGS, pointers + 24
#else
    movl $PTE_BIG, %eax
    xorl %ecx, %ecx
1:  movl %eax, top_table(, %ecx, 4)
    addl $0x400000, %eax
    incl %ecx
    cmpl $1024, %ecx
    jb 1b
    movl $low_table + PTE_TABLE, top_table
    movl $window_table + PTE_TABLE, top_table + (WINDOW_VA >> 22) * 4
    movl $PTE_TABLE, %eax
    xorl %ecx, %ecx
2:  movl %eax, low_table(, %ecx, 4)
    addl $4096, %eax
    incl %ecx
    cmpl $1024, %ecx
    jb 2b
#endif
    ret

    .section .bss.page_tables, "aw", @nobits
    .balign 4096
    .globl top_table, low_table, window_table
top_table: .skip 4096
low_table: .skip 4096
window_table: .skip 8192
#if CONFIG_PAGING >= 3
page_directories: .skip 4 * 4096
#endif
#if CONFIG_PAGING == 4
pointer_table: .skip 4096
#endif
#endif

    .section .bss.boot_stack, "aw", @nobits
    .balign 16
    .skip 32768
boot_stack_top:

/* Not in .bss: it is written before anything could rely on .bss. */
    .section .data.boot, "aw", @progbits
    .balign 8
    .globl entry_state, gdt, gdt_descriptor
entry_state: .skip ENTRY_SIZE

    .balign 16
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff        /* SEL_CODE32 */
    .quad 0x00af9b000000ffff        /* SEL_CODE64 */
    .quad 0x00cf93000000ffff        /* SEL_DATA */
    .quad 0x00cffb000000ffff        /* SEL_USER_CODE32 */
    .quad 0x00affb000000ffff        /* SEL_USER_CODE64 */
    .quad 0x00cff3000000ffff        /* SEL_USER_DATA */
    .quad 0, 0                      /* SEL_TSS: traps_init() writes it */
gdt_end:
gdt_descriptor:
    .word gdt_end - gdt - 1
    .long gdt, 0

    .section .note.GNU-stack, "", @progbits
