/*
 * The ROM of a TCG engine process: from the reset vector to the stub, nothing else.
 *
 * The first CPU enters in real mode at the reset vector, which jumps to `reset`; the others enter
 * at `trampoline`, of which Python keeps a copy at 0x8000 (the page named in the stub's SIPI).
 * Each CPU finds its number (the initial APIC id), switches to long mode and jumps to the stub
 * with rdi = its mailbox and rsi = the IDT pointer.  Python fills in `config` for each process:
 * several engine processes share one machine memory, so nothing here has a fixed address in it.
 *
 * Facts: AMD64 APM volume 2 chapters 4, 5 and 14.
 */
#define ROM_BASE        0xffff0000
#define CFG_CR3         ROM_BASE + 0x00
#define CFG_MAILBOX     ROM_BASE + 0x04
#define CFG_STRIDE      ROM_BASE + 0x08
#define CFG_IDTPTR      ROM_BASE + 0x0c
#define CFG_STUB        ROM_BASE + 0x10

        .globl  _start, trampoline, trampoline_end, reset
        .code16
_start:
        .fill   0x20, 1, 0              /* config */
        .balign 16
gdt:    .quad   0
        .quad   0x00af9b000000ffff      /* 0x08 64-bit code */
        .quad   0x00cf93000000ffff      /* 0x10 data */
        .quad   0x00cf9b000000ffff      /* 0x18 32-bit code */
gdtptr: .word   31
        .long   ROM_BASE + (gdt - _start)

reset:  cli
        lgdtl   %cs:(gdtptr - _start)
        mov     %cr0,%eax
        or      $1,%al
        mov     %eax,%cr0
        ljmpl   $0x18,$(ROM_BASE + (protected - _start))

        .balign 16
trampoline:
        cli
        lgdtl   %cs:(1f - trampoline)
        mov     %cr0,%eax
        or      $1,%al
        mov     %eax,%cr0
        ljmpl   $0x18,$(ROM_BASE + (protected - _start))
1:      .word   31
        .long   ROM_BASE + (gdt - _start)
trampoline_end:

        .code32
protected:
        mov     $0x10,%eax
        mov     %eax,%ds
        mov     %eax,%es
        mov     %eax,%ss
        mov     $1,%eax
        cpuid
        shr     $24,%ebx                /* the initial APIC id numbers the CPUs */
        imul    CFG_STRIDE,%ebx
        add     CFG_MAILBOX,%ebx
        mov     $0x20,%eax              /* CR4.PAE */
        mov     %eax,%cr4
        mov     CFG_CR3,%eax
        mov     %eax,%cr3
        mov     $0xc0000080,%ecx        /* EFER: SVME, NXE, LME */
        xor     %edx,%edx
        mov     $0x1900,%eax
        wrmsr
        mov     %ebx,%edi
        mov     CFG_IDTPTR,%esi
        mov     CFG_STUB,%ebx
        mov     $0x80010011,%eax        /* CR0: PG, WP, ET, PE: as most guests have it */
        mov     %eax,%cr0
        ljmp    $0x08,$(ROM_BASE + (long_mode - _start))
        .code64
long_mode:
        mov     %edi,%edi
        mov     %esi,%esi
        mov     %ebx,%ebx
        jmp     *%rbx
