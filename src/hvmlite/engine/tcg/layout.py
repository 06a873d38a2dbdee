"""Where everything lies in the memory that a TCG engine process and Python share.

All offsets of the stub's private area, the mailbox and the VMCB, named once.  The assembler side
is stub/stub.S and stub/rom.S; the VMCB is AMD64 APM volume 2, appendix B.
"""

from __future__ import annotations

# ---- L1-physical addresses outside of machine memory
LOW_RAM_END = 0xC0000000
"""QEMU's microvm puts RAM beyond this at 4 GiB."""
HIGH_RAM_START = 0x1_0000_0000
VIRTIO_MMIO_BASE = 0xFEB00000
VIRTIO_MMIO_STRIDE = 0x200
VIRTIO_MMIO_SLOTS = 8
MSI_BASE = 0xFEE00000
MSI_DESTINATION_SHIFT = 12
TRAMPOLINE = 0x8000
ROM_SIZE = 0x10000
ROM_CONFIG = "<IIIII"

# ---- the private area of one engine process: offsets from its start
PML4 = 0x0000
PDPT = 0x1000
IDT_POINTER = 0x2000
IDT = 0x3000
STUB = 0x4000
IO_MAP = 0x9000
IO_MAP_SIZE = 0x3000
MSR_MAP = 0xC000
MSR_MAP_SIZE = 0x2000
RING_DESC = 0xE000
RING_AVAIL = 0xE800
RING_USED = 0xF000
RING_ENTRIES = 128
SCRATCH = 0x10000
EOI_MSR_MAP = 0x11000
"""A permission map that lets the x2APIC's EOI pass, of the size of the other."""
CPU_AREAS = 0x13000
CPU_STRIDE = 0x6000
CPU_STACK = 0x0000
CPU_MAILBOX = 0x1000
CPU_VMCB = 0x2000
CPU_HSAVE = 0x3000
CPU_CPUID = 0x4000
CPU_CPUID_SIZE = 0x2000

CPUID_LEAVES = 0x20
CPUID_GROUPS = {0x0: 0, 0x4: 1, 0x8: 2}
"""Group of entries by the top four bits of the leaf."""
CPUID_ENTRY = "<5I12x"
CPUID_CONSTANT = 1
CPUID_SUBLEAVES = 2
CPUID_OSXSAVE = 3
KICK_VECTOR = 0x30


def area_size(vcpus: int) -> int:
    """Bytes of the private area of a process with that many CPUs."""
    return CPU_AREAS + vcpus * CPU_STRIDE


# ---- mailbox: byte offsets
STATE = 0x00
BELL = 0x04
ASLEEP = 0x08
KICKED = 0x0C
READY = 0x10
FLAGS = 0x14
INDEX = 0x18
SPIN = 0x1C
GENERAL = {
    "rbx": 0x20, "rcx": 0x28, "rdx": 0x30, "rsi": 0x38, "rdi": 0x40, "rbp": 0x48,
    "r8": 0x50, "r9": 0x58, "r10": 0x60, "r11": 0x68,
    "r12": 0x70, "r13": 0x78, "r14": 0x80, "r15": 0x88,
}  # fmt: skip
ARGUMENTS = 0x90
VMCB_ADDRESS = 0xB0
HSAVE_ADDRESS = 0xB8
CPUID_ADDRESS = 0xC0
CPUID_COUNT = 0xC8
STOP = 0xCC
STUB_CR4 = 0xD0

FLAG_LOAD = 1
FLAG_SAVE = 2
FLAG_CPUID = 4

CMD_RUN = 1
CMD_CPUID = 2
CMD_RDTSC = 3
CMD_READ32 = 4
CMD_WRITE32 = 5
CMD_MEASURE = 6
CMD_VMSAVE = 7

# ---- VMCB: byte offsets
INTERCEPT_CR = 0x00
INTERCEPT_EXCEPTIONS = 0x08
INTERCEPT_1 = 0x0C
INTERCEPT_2 = 0x10
IO_MAP_ADDRESS = 0x40
MSR_MAP_ADDRESS = 0x48
TSC_OFFSET = 0x50
ASID = 0x58
TLB_CONTROL = 0x5C
INT_CONTROL = 0x60
INT_VECTOR = 0x64
INT_STATE = 0x68
EXIT_CODE = 0x70
EXIT_INFO_1 = 0x78
EXIT_INFO_2 = 0x80
EXIT_INT_INFO = 0x88
NESTED_CONTROL = 0x90
EVENT_INJECT = 0xA8
NESTED_CR3 = 0xB0
SEGMENTS = {
    "es": 0x400, "cs": 0x410, "ss": 0x420, "ds": 0x430, "fs": 0x440, "gs": 0x450,
    "gdtr": 0x460, "ldtr": 0x470, "idtr": 0x480, "tr": 0x490,
}  # fmt: skip
CPL = 0x4CB
CONTROL = {
    "efer": 0x4D0, "cr4": 0x548, "cr3": 0x550, "cr0": 0x558, "dr7": 0x560, "dr6": 0x568,
    "rflags": 0x570, "rip": 0x578, "rsp": 0x5D8, "rax": 0x5F8, "cr2": 0x640,
}  # fmt: skip
GUEST_PAT = 0x668

# ---- intercepts
INTERCEPT_INTR = 1 << 0
INTERCEPT_NMI = 1 << 1
INTERCEPT_VINTR = 1 << 4
INTERCEPT_CR0_SELECTIVE = 1 << 5
INTERCEPT_RDTSC = 1 << 14
INTERCEPT_CPUID = 1 << 18
INTERCEPT_INVD = 1 << 22
INTERCEPT_HLT = 1 << 24
INTERCEPT_IO = 1 << 27
INTERCEPT_MSR = 1 << 28
INTERCEPT_SHUTDOWN = 1 << 31
INTERCEPT_SVM = 0x7F
"""VMRUN, VMMCALL, VMLOAD, VMSAVE, STGI, CLGI, SKINIT."""
INTERCEPT_RDTSCP = 1 << 7
UD_VECTOR = 6
INTERCEPT_CR0_WRITE = 1 << 16
INTERCEPT_CR4_WRITE = 1 << 20

# ---- exit codes
EXIT_CR0_WRITE = 0x10
EXIT_CR4_WRITE = 0x14
EXIT_EXCEPTION = 0x40
EXIT_INTR = 0x60
EXIT_NMI = 0x61
EXIT_VINTR = 0x64
EXIT_CR0_SELECTIVE = 0x65
EXIT_RDTSC = 0x6E
EXIT_CPUID = 0x72
EXIT_INVD = 0x76
EXIT_HLT = 0x78
EXIT_IO = 0x7B
EXIT_MSR = 0x7C
EXIT_SHUTDOWN = 0x7F
EXIT_VMRUN = 0x80
EXIT_VMMCALL = 0x81
EXIT_SKINIT = 0x86
EXIT_RDTSCP = 0x87
EXIT_NPF = 0x400
EXIT_INVALID = 0xFFFF_FFFF_FFFF_FFFF

V_IRQ = 1 << 8
V_IGN_TPR = 1 << 20
V_INTR_MASKING = 1 << 24
V_INTR_PRIO = 0xF << 16
EVENT_VALID = 1 << 31
EVENT_ERROR_CODE = 1 << 11
EVENT_NMI = 2 << 8
EVENT_EXCEPTION = 3 << 8
EVENT_SOFTWARE = 4 << 8

NPF_PRESENT = 1
NPF_WRITE = 2
NPF_FETCH = 1 << 4

EFER_SVME = 1 << 12
EFER_LMA = 1 << 10
EFER_LME = 1 << 8


def physical(frame: int) -> int:
    """The L1-physical address of a machine frame (QEMU leaves a hole below 4 GiB)."""
    address = frame << 12
    return address if address < LOW_RAM_END else address + (HIGH_RAM_START - LOW_RAM_END)


def frame_of(entry: int) -> int:
    """The machine frame that a page table entry of ours points at."""
    address = entry & 0x000F_FFFF_FFFF_F000
    if address >= HIGH_RAM_START:
        address -= HIGH_RAM_START - LOW_RAM_END
    return address >> 12
