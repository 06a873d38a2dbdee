/*
 * The ring-0 stub ("L1") that turns a QEMU TCG process into a CPU with SVM for hvmlite.
 *
 * It runs in long mode on QEMU's virtual CPUs, one instance each, and does three things: wait for a
 * command in its mailbox, run the guest ("L2") with VMRUN until the next #VMEXIT, and ring the
 * doorbell if Python asked for it.  It decides nothing: what an exit means is Python's business,
 * except that CPUID leaves which Python declared constant are answered here (an exit costs the
 * guest its translated TLB only once that way).
 *
 * Facts: AMD64 APM volume 2 chapter 15 (SVM), ../layout.py for every offset and address.
 * Position independent: %rsp points at the mailbox of this CPU throughout, and the stack grows
 * down from there into the page below.  Assemble with ./build.py, which writes stub.bin beside this
 * file; a test assembles it again and compares.
 */
#define MB_STATE        0x00    /* u32 command; 0 when done */
#define MB_BELL         0x04    /* u32 nonzero: ring the doorbell when done */
#define MB_ASLEEP       0x08    /* u32 nonzero: the stub is in HLT, a command needs a kick */
#define MB_KICKED       0x0c    /* u32 set by Python with a kick, cleared when it was taken */
#define MB_READY        0x10    /* u32 */
#define MB_FLAGS        0x14    /* u32 FLAG_* */
#define MB_INDEX        0x18    /* u32 number of this CPU */
#define MB_SPIN         0x1c    /* u32 polls before the stub goes to sleep */
#define MB_RBX          0x20
#define MB_RCX          0x28
#define MB_RDX          0x30
#define MB_RSI          0x38
#define MB_RDI          0x40
#define MB_RBP          0x48
#define MB_R8           0x50
#define MB_R9           0x58
#define MB_R10          0x60
#define MB_R11          0x68
#define MB_R12          0x70
#define MB_R13          0x78
#define MB_R14          0x80
#define MB_R15          0x88
#define MB_A0           0x90    /* arguments and results of commands, u64 each */
#define MB_A1           0x98
#define MB_A2           0xa0
#define MB_A3           0xa8
#define MB_VMCB         0xb0    /* u64 physical address */
#define MB_HSAVE        0xb8    /* u64 physical address */
#define MB_CPUID        0xc0    /* u64 physical address of the CPUID table */
#define MB_CPUIDS       0xc8    /* u32 CPUID exits answered here */
#define MB_STOP         0xcc    /* u32 set by Python with every kick of a running guest */
#define MB_CR4          0xd0    /* u64 the stub's own CR4 */

#define FLAG_LOAD       1       /* VMLOAD before the next VMRUN; cleared by the stub */
#define FLAG_SAVE       2       /* VMSAVE after every exit */
#define FLAG_CPUID      4       /* answer constant CPUID leaves from the table */

#define CMD_RUN         1
#define CMD_CPUID       2       /* A0 leaf, A1 subleaf -> A0..A3 eax..edx */
#define CMD_RDTSC       3       /* -> A0 TSC, A1 TSC_AUX (the guest's: nothing switches it) */
#define CMD_READ32      4       /* A0 physical address -> A1 */
#define CMD_WRITE32     5       /* A0 physical address, A1 value */
#define CMD_MEASURE     6       /* A0 times VMRUN of a guest that only calls; -> A1 TSC ticks */
#define CMD_VMSAVE      7

#define VMCB_EXITCODE   0x70
#define VMCB_EXITINTINFO 0x88
#define VMCB_CR4        0x548
#define VMCB_RIP        0x578
#define VMCB_RAX        0x5f8
#define CR4_PAE         0x20
#define CR4_FLUSHING    0x300090 /* PSE, PGE, SMEP, SMAP */
#define EXIT_INTR       0x60
#define EXIT_CPUID      0x72

#define ENTRY_SUBLEAVES 2       /* kinds of entries: 0 none, 1 constant */
#define ENTRY_OSXSAVE   3       /* constant but for the bit that mirrors CR4.OSXSAVE */
#define CR4_OSXSAVE_BIT 18
#define CPUID_OSXSAVE_BIT 27
#define CPUID_LEAVES    0x20    /* basic, extended and hypervisor leaves in the table, each */
#define LAPIC           0xfee00000
#define MSR_VM_HSAVE_PA 0xc0010117

        .code64
        .globl  _start
_start:                                 /* ROM: rdi = mailbox of this CPU, rsi = IDT pointer */
        mov     $0x10,%eax
        mov     %eax,%ds
        mov     %eax,%es
        mov     %eax,%ss
        mov     %rdi,%rsp
        lidt    (%rsi)
        mov     $MSR_VM_HSAVE_PA,%ecx
        mov     MB_HSAVE(%rsp),%eax
        mov     MB_HSAVE+4(%rsp),%edx
        wrmsr
        clgi
        sti
        mov     $LAPIC,%r8d
        movl    $0x1ff,0xf0(%r8)        /* software-enable the local APIC */
        cmpl    $0,MB_INDEX(%rsp)
        jne     1f
        movl    $0xc4500,0x300(%r8)     /* INIT, all but self */
        movl    $0xc4608,0x300(%r8)     /* SIPI, all but self, page 8 */
1:      movl    $1,MB_READY(%rsp)
        jmp     done

/* ---- wait for a command --------------------------------------------------------------------- */
idle:   mov     MB_SPIN(%rsp),%edx
1:      mov     MB_STATE(%rsp),%ecx
        test    %ecx,%ecx
        jnz     command
        dec     %edx
        jnz     1b
        /* Sleep.  The kick that comes with a command stays pending until STI lets HLT take it. */
        cli
        movl    $1,MB_ASLEEP(%rsp)
        mfence
        cmpl    $0,MB_STATE(%rsp)
        jne     2f
        stgi
        sti
        hlt
        clgi
2:      sti
        movl    $0,MB_ASLEEP(%rsp)
        jmp     idle

command:
        cmp     $CMD_RUN,%ecx
        je      run
        cmp     $CMD_CPUID,%ecx
        je      do_cpuid
        cmp     $CMD_RDTSC,%ecx
        je      do_rdtsc
        cmp     $CMD_READ32,%ecx
        je      do_read
        cmp     $CMD_WRITE32,%ecx
        je      do_write
        cmp     $CMD_MEASURE,%ecx
        je      do_measure
        cmp     $CMD_VMSAVE,%ecx
        je      do_vmsave
        jmp     done

/* ---- run the guest -------------------------------------------------------------------------- */
run:    mov     MB_VMCB(%rsp),%rax
        /* The interrupt of a kick may have been used up to wake this CPU for the command: what
           says that the guest must come out is this word. */
        cmpl    $0,MB_STOP(%rsp)
        jne     stopped
        /* Have the guest's CR4 bits on which QEMU flushes its TLB and its table of translated code
           when they change: each VMRUN and #VMEXIT between two values costs one more flush. */
        mov     VMCB_CR4(%rax),%ecx
        and     $CR4_FLUSHING,%ecx
        or      $CR4_PAE,%ecx
        cmp     MB_CR4(%rsp),%rcx
        je      1f
        mov     %rcx,MB_CR4(%rsp)
        mov     %rcx,%cr4
1:
        mov     MB_RBX(%rsp),%rbx
        mov     MB_RCX(%rsp),%rcx
        mov     MB_RDX(%rsp),%rdx
        mov     MB_RSI(%rsp),%rsi
        mov     MB_RDI(%rsp),%rdi
        mov     MB_RBP(%rsp),%rbp
        mov     MB_R8(%rsp),%r8
        mov     MB_R9(%rsp),%r9
        mov     MB_R10(%rsp),%r10
        mov     MB_R11(%rsp),%r11
        mov     MB_R12(%rsp),%r12
        mov     MB_R13(%rsp),%r13
        mov     MB_R14(%rsp),%r14
        mov     MB_R15(%rsp),%r15
        testl   $FLAG_LOAD,MB_FLAGS(%rsp)
        jz      enter
        andl    $~FLAG_LOAD,MB_FLAGS(%rsp)
        vmload  %rax
enter:  vmrun   %rax
        cmpl    $EXIT_CPUID,VMCB_EXITCODE(%rax)
        jne     exited
        testl   $FLAG_CPUID,MB_FLAGS(%rsp)
        jz      exited
        /* A constant leaf?  The table has three groups of CPUID_LEAVES entries of 32 bytes:
           {u32 kind, eax, ebx, ecx, edx}.  rbx is overwritten by the answer anyway. */
        mov     VMCB_RAX(%rax),%ebx
        cmp     $CPUID_LEAVES,%ebx
        jb      2f
        sub     $0x40000000,%ebx
        cmp     $CPUID_LEAVES,%ebx
        jb      1f
        sub     $0x40000000,%ebx
        cmp     $CPUID_LEAVES,%ebx
        jae     3f
        add     $CPUID_LEAVES,%ebx
1:      add     $CPUID_LEAVES,%ebx
2:      shl     $5,%ebx
        add     MB_CPUID(%rsp),%rbx
        cmpl    $ENTRY_SUBLEAVES,(%rbx)
        jne     4f
        /* eax is the offset of a table of its own, ebx the number of subleaves in it. */
        cmp     8(%rbx),%ecx
        jae     3f
        mov     %ecx,%ecx
        shl     $5,%rcx
        mov     4(%rbx),%ebx
        add     MB_CPUID(%rsp),%rbx
        add     %rcx,%rbx
        shr     $5,%rcx
4:      cmpl    $0,(%rbx)
        je      3f
        cmpl    $ENTRY_OSXSAVE,(%rbx)
        mov     4(%rbx),%ecx
        mov     %rcx,VMCB_RAX(%rax)
        mov     12(%rbx),%ecx
        jne     5f
        btl     $CR4_OSXSAVE_BIT,VMCB_CR4(%rax)
        jnc     5f
        bts     $CPUID_OSXSAVE_BIT,%ecx
5:      mov     16(%rbx),%edx
        mov     8(%rbx),%ebx
        addq    $2,VMCB_RIP(%rax)
        incl    MB_CPUIDS(%rsp)
        jmp     enter
3:      /* Not ours: Python reads rbx only after it answered, so its old value is not needed. */
exited: mov     %rbx,MB_RBX(%rsp)
        mov     %rcx,MB_RCX(%rsp)
        mov     %rdx,MB_RDX(%rsp)
        mov     %rsi,MB_RSI(%rsp)
        mov     %rdi,MB_RDI(%rsp)
        mov     %rbp,MB_RBP(%rsp)
        mov     %r8,MB_R8(%rsp)
        mov     %r9,MB_R9(%rsp)
        mov     %r10,MB_R10(%rsp)
        mov     %r11,MB_R11(%rsp)
        mov     %r12,MB_R12(%rsp)
        mov     %r13,MB_R13(%rsp)
        mov     %r14,MB_R14(%rsp)
        mov     %r15,MB_R15(%rsp)
        testl   $FLAG_SAVE,MB_FLAGS(%rsp)
        jz      1f
        vmsave  %rax
1:      cmpl    $EXIT_INTR,VMCB_EXITCODE(%rax)
        jne     done
        stgi                            /* take the interrupt that ended the run */
        nop
        nop
        clgi

        jmp     done

stopped:
        movq    $EXIT_INTR,VMCB_EXITCODE(%rax)
        movq    $0,VMCB_EXITINTINFO(%rax)
done:   movl    $0,MB_STATE(%rsp)
        mfence
        cmpl    $0,MB_BELL(%rsp)
        je      idle
        mov     MB_INDEX(%rsp),%eax
        out     %al,$0xe9
        jmp     idle

/* ---- the other commands --------------------------------------------------------------------- */
do_cpuid:
        mov     MB_A0(%rsp),%eax
        mov     MB_A1(%rsp),%ecx
        cpuid
        mov     %rax,MB_A0(%rsp)
        mov     %rbx,MB_A1(%rsp)
        mov     %rcx,MB_A2(%rsp)
        mov     %rdx,MB_A3(%rsp)
        jmp     done
do_rdtsc:
        rdtscp
        shl     $32,%rdx
        or      %rdx,%rax
        mov     %rax,MB_A0(%rsp)
        mov     %rcx,MB_A1(%rsp)
        jmp     done
do_read:
        mov     MB_A0(%rsp),%rbx
        mov     (%rbx),%eax
        mov     %rax,MB_A1(%rsp)
        jmp     done
do_write:
        mov     MB_A0(%rsp),%rbx
        mov     MB_A1(%rsp),%eax
        mov     %eax,(%rbx)
        jmp     done
do_measure:
        mov     MB_VMCB(%rsp),%rbx
        mov     MB_A0(%rsp),%r12
        rdtsc
        shl     $32,%rdx
        or      %rdx,%rax
        mov     %rax,%r13
1:      mov     %rbx,%rax
        vmrun   %rax
        addq    $3,VMCB_RIP(%rbx)       /* past VMMCALL; the guest jumps back by itself */
        dec     %r12
        jnz     1b
        rdtsc
        shl     $32,%rdx
        or      %rdx,%rax
        sub     %r13,%rax
        mov     %rax,MB_A1(%rsp)
        jmp     done
do_vmsave:
        mov     MB_VMCB(%rsp),%rax
        vmsave  %rax
        jmp     done

/* ---- interrupts of our own ------------------------------------------------------------------- */
        .balign 16
        .globl  kick
kick:   push    %rax                    /* the kick: a message-signalled interrupt */
        mov     $LAPIC,%eax
        movl    $0,0xb0(%rax)           /* end of interrupt */
        mov     0x20(%rsp),%rax         /* interrupted rsp: the mailbox */
        movl    $0,MB_KICKED(%rax)
        pop     %rax
        iretq

        .balign 16
        .globl  fault
fault:  /* An exception in the stub itself is a bug: say so and stop. */
        hlt
        jmp     fault
