"""The hvm_start_info block: what a PVH kernel finds at the address in EBX.

Builds the bytes for a given guest-physical address; where that is and whether it fits is
hvmlite.toolstack.layout's business. Facts: public/arch-x86/hvm/start_info.h; the order of the parts
is that of tools/libs/guest/xg_dom_x86.c, which hands out the same things.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from hvmlite.abi.start_info import (
    XEN_HVM_START_MAGIC_VALUE,
    hvm_memmap_table_entry,
    hvm_modlist_entry,
    hvm_start_info,
)
from hvmlite.errors import UserError
from hvmlite.toolstack.layout import E820Entry

START_INFO_VERSION: Final = 1

MAX_CMDLINE: Final = (1 << 16) - 1
"""Bytes of a kernel's command line without its NUL. Xen sets no limit; each kernel has its own."""
LINUX_MAX_CMDLINE: Final = 2048 - 1
"""What Linux keeps (its COMMAND_LINE_SIZE on x86); it silently drops the rest."""
MAX_MODULE_CMDLINE: Final = 1024 - 1
"""Bytes of a module's command line without its NUL: Xen's builder allows MAX_GUEST_CMDLINE with."""

_ALIGN: Final = 8
_BELOW: Final = 1 << 32


class CommandLineError(UserError):
    """A command line that cannot be handed to the guest."""


class Module(NamedTuple):
    """A module in guest memory: address, exact size in bytes, and its own command line."""

    paddr: int
    size: int
    cmdline: str | None = None


def start_info_size(
    cmdline: str | None,
    module_cmdlines: Sequence[str | None],
    memmap_entries: int,
    limit: int = MAX_CMDLINE,
) -> int:
    """Bytes that build_start_info will return for such arguments. Raises CommandLineError."""
    modules = [Module(0, 0, text) for text in module_cmdlines]
    memmap = [E820Entry(0, 0, 0)] * memmap_entries
    return len(build_start_info(0, cmdline, modules, memmap, limit=limit))


def build_start_info(
    paddr: int,
    cmdline: str | None,
    modules: Sequence[Module],
    memmap: Sequence[E820Entry],
    rsdp_paddr: int = 0,
    flags: int = 0,
    limit: int = MAX_CMDLINE,
) -> bytes:
    """hvm_start_info version 1 at guest-physical `paddr`, with all that it points to.

    None for a command line, and an absent part, is a null pointer. `rsdp_paddr` is 0 without ACPI;
    `flags` are SIF_*, 0 for a domU; `limit` is the longest command line in bytes, without NUL.
    Raises CommandLineError if a command line is too long or holds NUL.
    """
    text = _c_string("command line", cmdline, limit)
    module_texts = [
        _c_string(f"command line of module {index}", module.cmdline, MAX_MODULE_CMDLINE)
        for index, module in enumerate(modules)
    ]

    block = _Block(paddr)
    block.append(bytes(hvm_start_info.sizeof()))
    info = hvm_start_info(
        magic=XEN_HVM_START_MAGIC_VALUE,
        version=START_INFO_VERSION,
        flags=flags,
        nr_modules=len(modules),
        cmdline_paddr=block.append(text),
        rsdp_paddr=rsdp_paddr,
        memmap_entries=len(memmap),
    )
    modlist_size = len(modules) * hvm_modlist_entry.sizeof()
    info.modlist_paddr = block.append(bytes(modlist_size))
    modlist = b"".join(
        hvm_modlist_entry(module.paddr, module.size, block.append(module_text)).pack()
        for module, module_text in zip(modules, module_texts, strict=True)
    )
    block.replace(info.modlist_paddr, modlist)
    info.memmap_paddr = block.append(
        b"".join(hvm_memmap_table_entry(*entry).pack() for entry in memmap)
    )
    block.replace(paddr, info.pack())

    if paddr % _ALIGN or paddr + len(block.data) > _BELOW:
        raise ValueError(f"no start info of {len(block.data)} bytes at {paddr:#x}")
    return bytes(block.data)


class _Block:
    """Bytes that will lie at `paddr`, grown part by part."""

    def __init__(self, paddr: int) -> None:
        self.paddr = paddr
        self.data = bytearray()

    def append(self, part: bytes) -> int:
        """Guest-physical address of the part; 0, the null pointer, for an empty one."""
        if not part:
            return 0
        paddr = self.paddr + len(self.data)
        self.data += part
        self.data += bytes(-len(self.data) % _ALIGN)
        return paddr

    def replace(self, paddr: int, part: bytes) -> None:
        """Overwrite what lies at `paddr`."""
        if part:
            at = paddr - self.paddr
            self.data[at : at + len(part)] = part


def _c_string(what: str, text: str | None, limit: int) -> bytes:
    """The string with its NUL, or nothing for None."""
    if text is None:
        return b""
    try:
        encoded = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise CommandLineError(f"{what} is not text: {error.reason}") from None
    if b"\0" in encoded:
        raise CommandLineError(f"{what} contains a NUL byte")
    if len(encoded) > limit:
        raise CommandLineError(f"{what} has {len(encoded)} bytes, the limit is {limit}")
    return encoded + b"\0"
