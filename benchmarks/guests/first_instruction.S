# A PVH guest whose first instructions report that it runs, then end it.
# Port 0xE9 is the debug console of Xen and of QEMU; 0xF4 ends a plain QEMU that has isa-debug-exit,
# and goes nowhere in a Xen guest, which ends by halting its only vCPU with interrupts off.

        .code32
        .text
        .globl  _start
_start:
        movb    $'!', %al
        outb    %al, $0xe9
        xorl    %eax, %eax
        outb    %al, $0xf4
        cli
1:      hlt
        jmp     1b

        .section .note.Xen, "a", @note
        .align  4
        .long   4                       # name size
        .long   4                       # descriptor size
        .long   18                      # XEN_ELFNOTE_PHYS32_ENTRY
        .asciz  "Xen"
        .long   _start
