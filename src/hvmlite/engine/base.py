"""What every engine offers: CPUs that run guest instructions and return typed exits.

An engine handles no exit; it only says what the guest did.  It knows machine frames and the nested
map from guest frames to them, never domains, hypercalls or devices.  A second engine is one more
package that implements `Partition` and `EngineVcpu`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from enum import IntFlag
from types import MappingProxyType

from hvmlite.engine.memory import PAGE_SIZE, MachineMemory
from hvmlite.records import field, record

CpuidAnswer = tuple[int, int, int, int]
"""eax, ebx, ecx, edx."""


class Access(IntFlag):
    """What a guest may do with a mapped frame."""

    READ = 1
    WRITE = 2
    EXECUTE = 4
    RW = READ | WRITE
    RWX = READ | WRITE | EXECUTE


# ---- exits -----------------------------------------------------------------------------------


@record
class Exit:
    """Why a vCPU stopped.  Each vCPU reuses its exit objects: read them before it runs again."""


@record
class Hypercall(Exit):
    """VMCALL or VMMCALL; the instruction pointer is already behind it."""


@record
class Cpuid(Exit):
    """CPUID; answer with `EngineVcpu.complete_cpuid`."""

    leaf: int = 0
    subleaf: int = 0


@record
class Msr(Exit):
    """RDMSR or WRMSR; answer with `complete_rdmsr`, `complete_wrmsr` or an injected #GP."""

    index: int = 0
    write: bool = False
    value: int = 0


@record
class Tsc(Exit):
    """RDTSC or RDTSCP after `Partition.intercept_tsc`; answer with `EngineVcpu.complete_tsc`."""


@record
class PortIo(Exit):
    """IN or OUT of `size` bytes, or a piece of INS/OUTS (`string`).

    Answer with `complete_in` or `complete_out`.  `value` is what OUT writes, `data` what OUTS
    writes, one item of `size` bytes after the other.
    """

    port: int = 0
    size: int = 1
    write: bool = False
    value: int = 0
    string: bool = False
    data: bytes = b""


@record
class Mmio(Exit):
    """An access to a guest-physical address that is not mapped (or not for writing).

    Answer with `EngineVcpu.emulate_mmio`, or map the frame and let the guest try again.
    """

    gpa: int = 0
    write: bool = False
    fetch: bool = False


@record
class Halt(Exit):
    """HLT; the instruction pointer is already behind it."""


@record
class Shutdown(Exit):
    """A triple fault: the vCPU is in the architectural shutdown state."""


@record
class Kicked(Exit):
    """`EngineVcpu.kick` (or an interrupt of the engine's own) ended the run."""


@record
class Window(Exit):
    """The guest can take an interrupt; see `EngineVcpu.watch_window`."""


@record
class Failure(Exit):
    """The engine cannot run this vCPU on: its state is invalid.  `reason` says what is wrong."""

    reason: str = ""


# ---- CPU state -------------------------------------------------------------------------------


@record
class Segment:
    """One segment register with its hidden part.

    `access` has the descriptor's bits 40-47 in bits 0-7 and its bits 52-55 in bits 8-11, as in
    struct vcpu_hvm_x86_32 (public/hvm/hvm_vcpu.h) and in a VMCB.  `limit` is in bytes.
    """

    selector: int = 0
    base: int = 0
    limit: int = 0
    access: int = 0


GENERAL_REGISTERS = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
SEGMENT_REGISTERS = ("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr", "gdtr", "idtr")
CONTROL_REGISTERS = ("cr0", "cr2", "cr3", "cr4", "efer", "rip", "rflags", "dr6", "dr7")


@record
class CpuState:
    """The architectural state that a vCPU starts with; what is not named is zero.

    The defaults are those after INIT (Intel SDM volume 3, table 9-1), without segments.
    """

    general: dict[str, int] = field(default_factory=dict)
    segments: dict[str, Segment] = field(default_factory=dict)
    rip: int = 0
    rflags: int = 2
    cr0: int = 0x10
    cr3: int = 0
    cr4: int = 0
    efer: int = 0
    dr6: int = 0xFFFF0FF0
    dr7: int = 0x400
    pat: int = 0x0007040600070406


NO_NUDGE = 1 << 62
"""What `EngineVcpu.nudge` answers where nothing is on its way."""


class EngineVcpu(ABC):
    """One virtual CPU.  All methods but `kick` and `exited` need the vCPU to be stopped.

    General registers, control registers and segments are attributes by name (`get`, `set`,
    `segment`); they hold after an exit until the next `start`.
    """

    index: int
    eoi_passes: bool = False
    """Whether `pass_eoi` and `watch_window` do something."""

    @abstractmethod
    def load(self, state: CpuState) -> None:
        """Sets the whole architectural state."""

    @abstractmethod
    def get(self, name: str) -> int:
        """Returns a register of `GENERAL_REGISTERS` or `CONTROL_REGISTERS`."""

    @abstractmethod
    def set(self, name: str, value: int) -> None:
        """Sets a register of `GENERAL_REGISTERS` or `CONTROL_REGISTERS`."""

    @abstractmethod
    def segment(self, name: str) -> Segment:
        """Returns a register of `SEGMENT_REGISTERS`."""

    @abstractmethod
    def set_segment(self, name: str, value: Segment) -> None:
        """Sets a register of `SEGMENT_REGISTERS`."""

    @abstractmethod
    def hypercall_registers(self) -> tuple[int, int, int, tuple[int, int, int, int, int]]:
        """Returns (mode, privilege level, number, arguments) of a hypercall in one go.

        Arguments are rdi, rsi, rdx, r10, r8 of a 64-bit caller, else ebx, ecx, edx, esi, edi.
        """

    @abstractmethod
    def set_rax(self, value: int) -> None:
        """Sets rax: the result of a hypercall."""

    @abstractmethod
    def start(self) -> None:
        """Lets the guest run until its next exit; returns at once."""

    def start_spinning(self) -> None:
        """As `start`, for a caller that spins and then calls `Partition.want_doorbell` or `nudge`.

        The run may begin only then, if the engine's CPU went to sleep just now.
        """
        self.start()

    def nudge(self) -> int:
        """Has a run that was begun by `start_spinning`, or a kick, really come to the engine's CPU.

        Whoever waits for the run's end calls it now and then.  Returns in how many nanoseconds the
        next call is due, or NO_NUDGE.
        """
        return NO_NUDGE

    @abstractmethod
    def exited(self) -> bool:
        """Whether the run begun by `start` has ended."""

    def spin(self) -> bool:
        """As `exited`, after it has been looked at for a moment (less than a microsecond)."""
        return self.exited()

    @abstractmethod
    def take_exit(self) -> Exit | None:
        """Returns why the run ended; None if it was the engine's own affair: start again."""

    @abstractmethod
    def kick(self) -> None:
        """Makes a running guest exit soon; does nothing lasting to a stopped one."""

    @abstractmethod
    def request_interrupt(self, vector: int, lasting: bool = False) -> None:
        """Has an external interrupt delivered at the start of the next run; -1: none.

        If the guest cannot take it then, the run ends when it can, for the caller to ask again: the
        interrupt may have been withdrawn by then.  A `lasting` one never is: it is delivered in the
        course of the run, which ends for other reasons only.
        """

    def pass_eoi(self, wanted: bool) -> None:
        """Has writes of the x2APIC's EOI register go by, without an exit and without effect.

        Only where `eoi_passes`.
        """
        raise NotImplementedError

    def watch_window(self) -> bool:
        """Has the next run end with `Window` once the guest could take an interrupt.

        That is, after the one requested for that run, if any.  Returns whether it will: that one
        cannot always be delivered in such a way, or the run ends before, when it can.
        """
        return False

    @abstractmethod
    def request_window(self) -> None:
        """After a start: ends that run soon after the interrupt requested for it is delivered."""

    @abstractmethod
    def interrupt_taken(self) -> bool:
        """Whether the interrupt requested before the last run was delivered in it."""

    @abstractmethod
    def inject_exception(self, vector: int, error_code: int | None = None) -> None:
        """Raises an exception before the next instruction."""

    @abstractmethod
    def inject_nmi(self) -> None:
        """Raises an NMI before the next instruction."""

    @abstractmethod
    def complete_cpuid(self, eax: int, ebx: int, ecx: int, edx: int) -> None:
        """Answers a `Cpuid` exit."""

    @abstractmethod
    def complete_rdmsr(self, value: int) -> None:
        """Answers a `Msr` exit that reads."""

    @abstractmethod
    def complete_wrmsr(self) -> None:
        """Answers a `Msr` exit that writes."""

    @abstractmethod
    def complete_tsc(self, value: int) -> None:
        """Answers a `Tsc` exit; the engine itself gives RDTSCP the guest's TSC_AUX."""

    @abstractmethod
    def complete_in(self, value: int) -> None:
        """Answers a `PortIo` exit that reads (`value` for every item of INS)."""

    @abstractmethod
    def complete_out(self) -> None:
        """Answers a `PortIo` exit that writes."""

    @abstractmethod
    def emulate_mmio(
        self, read: Callable[[int, int], int], write: Callable[[int, int, int], None]
    ) -> None:
        """Carries out the instruction behind a `Mmio` exit.

        `read(gpa, size)` and `write(gpa, size, value)` stand for the device.  An instruction that
        cannot be carried out raises `EngineError` that names it.
        """

    @property
    @abstractmethod
    def cpl(self) -> int:
        """The current privilege level, 0 to 3."""

    @property
    @abstractmethod
    def mode(self) -> int:
        """Operand size of the code that runs: 16, 32 or 64."""

    @abstractmethod
    def translate(self, address: int, *, write: bool = False) -> int:
        """Linear to guest-physical address by the guest's own tables; raises paging.PageFault."""

    @abstractmethod
    def fetch(self, size: int) -> bytes:
        """Up to `size` instruction bytes at the instruction pointer."""

    @abstractmethod
    def hardware_cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        """Returns eax, ebx, ecx, edx of the CPU under the guest, in this vCPU's own state."""

    @abstractmethod
    def set_constant_cpuid(
        self, leaves: Mapping[int, CpuidAnswer | Sequence[CpuidAnswer | None]]
    ) -> None:
        """Lets the engine answer these CPUID leaves without an exit.

        By leaf: eax, ebx, ecx, edx; or one such answer for each subleaf, None to exit for it.
        Bit 27 of ecx in leaf 1 follows the guest's CR4.OSXSAVE.
        """

    @abstractmethod
    def read_tsc(self) -> int:
        """Returns the time stamp counter that the guest reads at this moment (no offset)."""


class Partition(ABC):
    """The vCPUs and the nested map of one domain."""

    memory: MachineMemory
    vcpus: Sequence[EngineVcpu]
    doorbell: int
    executed_frames: Sequence[int]
    """`executed` of every frame of machine memory, for those who have many to ask about."""

    @abstractmethod
    def wait_ready(self) -> None:
        """Returns when the vCPUs can be used; memory can be mapped and written before.

        Raises EngineError if this engine does not start or fails its self-test.
        """

    @abstractmethod
    def map(self, gfn: int, frame: int, count: int, access: Access, *, code: bool = False) -> None:
        """Maps `count` guest frames from `gfn` to machine frames from `frame`.

        `code` says that the guest will execute them: write them first, it saves exits.
        """

    @abstractmethod
    def unmap(self, gfn: int, count: int) -> None:
        """Makes guest frames absent.  Running vCPUs may use them until `flush`."""

    @abstractmethod
    def flush(self) -> None:
        """Returns when no vCPU can use a mapping that was taken away before."""

    @abstractmethod
    def intercept_tsc(self) -> None:
        """Makes RDTSC and RDTSCP exit, as RDMSR of the counter always does.

        Before the vCPUs run; raises EngineError if this engine cannot.
        """

    @abstractmethod
    def write(self, frame: int, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Writes machine memory so that a running guest also executes what was written."""

    @abstractmethod
    def executed(self, frame: int) -> bool:
        """Whether a frame may hold code that a vCPU has seen.

        Not for ever: once all of it was written from outside it is data again.

        One that does not may be written in place, through the view of machine memory (a read of a
        file or a socket straight into it); `contents_replaced` afterwards says so, which matters
        if it has become executed meanwhile.  One that does is written by `write`.
        """

    @abstractmethod
    def contents_replaced(self, frame: int, offset: int = 0, size: int = PAGE_SIZE) -> None:
        """Says that bytes of a frame changed by other means than `write`.

        It was given back and zeroed, or written in place.  Returns once no vCPU can run what was
        there before; costs nothing for a frame that is not `executed`.  Name no more bytes than
        were changed: somebody else may be writing the rest.
        """

    @abstractmethod
    def want_doorbell(self, wanted: bool) -> None:
        """Has exits make `doorbell` (a file descriptor) readable, for a caller that sleeps."""

    @abstractmethod
    def clear_doorbell(self) -> None:
        """Empties the doorbell."""

    @abstractmethod
    def check_alive(self) -> None:
        """Raises EngineError if the engine is gone."""

    @abstractmethod
    def close(self) -> None:
        """Stops the vCPUs and frees what the engine holds; safe to call twice."""


class Engine(ABC):
    """A way to run guests on this machine."""

    name: str
    slow_features: Mapping[tuple[int, int], int] = MappingProxyType({})
    """CPUID bits, by (leaf, register index 0 to 3), of what guests do better without here."""

    @abstractmethod
    def create(self, memory: MachineMemory, vcpus: int) -> Partition:
        """Makes the vCPUs of a new domain over the given machine memory."""

    def close(self) -> None:
        """Frees what the engine holds beyond its partitions, before its memory goes."""
        return
