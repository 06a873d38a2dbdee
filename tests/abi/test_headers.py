"""Proves that every struct and constant in hvmlite.abi is what Xen's public headers declare.

A C probe is generated from the Python declarations, compiled for each ABI against the installed
headers and read out of the object file (nothing is linked or run): sizes, offsets, values.
It cannot see what a field means, nor anything newer than the installed headers (NEWER_*), nor
what no header declares (WITHOUT_HEADER).
"""

import enum
import importlib
import os
import pkgutil
import re
import shutil
import struct
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

import hvmlite.abi
from hvmlite.abi.errno import Errno
from hvmlite.abi.layout import Abi, Struct, u16, u64
from hvmlite.abi.ring import RING_SIZE, sring
from hvmlite.abi.xen import Hypercall
from hvmlite.abi.xenbus import XenbusState
from hvmlite.abi.xs_wire import XSD_ERRORS

INCLUDE = Path("/usr/include/xen")

HEADERS = {
    "arch_x86": ["arch-x86/xen.h", "xen.h"],
    "argo": ["argo.h"],
    "blkif": ["io/blkif.h"],
    "callback": ["callback.h"],
    "console": ["io/console.h"],
    "cpuid": ["arch-x86/cpuid.h"],
    "dm_op": ["hvm/dm_op.h"],
    "domctl": ["domctl.h"],
    "elf": ["../linux/elf.h", "../linux/elf-em.h"],
    "elfnote": ["elfnote.h"],
    "errno": ["errno.h"],
    "event_channel": ["event_channel.h"],
    "fbif": ["io/fbif.h"],
    "features": ["features.h"],
    "grant_table": ["grant_table.h"],
    "hvm": ["hvm/params.h", "hvm/hvm_op.h", "hvm/hvm_vcpu.h", "trace.h"],
    "ioreq": ["hvm/ioreq.h"],
    "kbdif": ["io/kbdif.h"],
    "memory": ["memory.h"],
    "netif": ["io/netif.h"],
    "nmi": ["nmi.h"],
    "physdev": ["physdev.h"],
    "platform": ["platform.h"],
    "pmu": ["pmu.h", "arch-x86/pmu.h"],
    "pvcalls": ["io/pvcalls.h"],
    "ring": ["io/ring.h"],
    "sched": ["sched.h"],
    "start_info": ["arch-x86/hvm/start_info.h"],
    "sysctl": ["sysctl.h"],
    "vcpu": ["vcpu.h"],
    "version": ["version.h"],
    "xen": ["xen.h", "arch-x86/xen.h"],
    "xen_9pfs": ["io/9pfs.h", "io/ring.h"],
    "xenbus": ["io/xenbus.h", "io/protocols.h"],
    "xs_wire": ["io/xs_wire.h"],
}
MODULES_WITHOUT_HEADER = {"layout", "e820", "p9", "xenstore_state"}

# What 4.17's headers do not have yet, and since when Xen has it.
INTERFACE_VERSION_4_17 = 0x00040E00
NEWER_CONSTANTS = {
    "VCPUOP_register_runstate_phys_area": "4.18",
    "VCPUOP_register_vcpu_time_phys_area": "4.18",
    "XENFEAT_runstate_phys_area": "4.18",
    "XENFEAT_vcpu_time_phys_area": "4.18",
    "XENFEAT_dm_msix_all_writes": "4.19",
    "XENVER_extraversion2": "after 4.17",
    "XENVER_capabilities2": "after 4.17",
    "XENVER_changeset2": "after 4.17",
    "XENVER_commandline2": "after 4.17",
    "XEN_ELFNOTE_PHYS32_RELOC": "after 4.17",
    "PHYSDEVOP_pci_device_reset": "4.20",
    "PCI_DEVICE_RESET_COLD": "4.20",
    "PCI_DEVICE_RESET_WARM": "4.20",
    "PCI_DEVICE_RESET_HOT": "4.20",
    "PCI_DEVICE_RESET_FLR": "4.20",
    "PCI_DEVICE_RESET_MASK": "4.20",
    "XS_GET_FEATURE": "4.21",
    "XS_SET_FEATURE": "4.21",
    "XS_GET_QUOTA": "4.21",
    "XS_SET_QUOTA": "4.21",
    "XENCONSOLE_CONNECTED": "4.21",
    "XENCONSOLE_DISCONNECTED": "4.21",
}
NEWER_STRUCTS = {"xen_varbuf": "after 4.17", "pci_device_reset": "4.20"}
NEWER_FIELDS = {("xencons_interface", "connection"): "4.21"}

# Names of ours for what the headers leave unnamed; None: checked below, or nowhere.
OWN_CONSTANTS: dict[str, str | None] = {
    "XENCONS_IN_SIZE": "sizeof(((struct xencons_interface *)0)->in)",
    "XENCONS_OUT_SIZE": "sizeof(((struct xencons_interface *)0)->out)",
    "XEN_COMMANDLINE_LEN": "sizeof(xen_commandline_t)",
    "EVTCHNOP_reset_cont": None,  # declared for the hypervisor only
    "EVTCHN_2L_NR_CHANNELS_X86_64": None,
    "EVTCHN_2L_NR_CHANNELS_X86_32": None,
    "IOREQ_STATE_MASK": None,
    "IOREQ_DATA_IS_PTR": None,
    "IOREQ_DIR": None,
    "IOREQ_DF": None,
    "BUF_IOREQ_DIR_SHIFT": None,
    "BUF_IOREQ_SIZE_SHIFT": None,
    "BUF_IOREQ_ADDR_SHIFT": None,
}


def member(outer: str, path: str) -> str:
    return f"__typeof__((({outer} *)0)->{path})"


# Structs whose C type is not `struct <name>`; those in VALUES are a plain value or array in C.
C_TYPES = {
    "evtchn_status_unbound": member("struct evtchn_status", "u.unbound"),
    "evtchn_status_interdomain": member("struct evtchn_status", "u.interdomain"),
    "evtchn_status_irq": member("struct evtchn_status", "u.pirq"),
    "gnttab_copy_gmfn": member("struct gnttab_copy_ptr", "u.gmfn"),
    "gnttab_copy_ref": member("struct gnttab_copy_ptr", "u.ref"),
    "grant_entry_v2": "union grant_entry_v2",
    "grant_entry_v2_full_page": member("union grant_entry_v2", "full_page"),
    "grant_entry_v2_sub_page": member("union grant_entry_v2", "sub_page"),
    "grant_entry_v2_transitive": member("union grant_entry_v2", "transitive"),
    "netif_extra_gso": member("struct netif_extra_info", "u.gso"),
    "netif_extra_hash": member("struct netif_extra_info", "u.hash"),
    "netif_extra_mcast": member("struct netif_extra_info", "u.mcast"),
    "physdev_pci_physfn": member("struct physdev_pci_device_add", "physfn"),
    "sring": "struct blkif_sring",
    "vcpu_register_area_phys": member("struct vcpu_register_runstate_memory_area", "addr.p"),
    "vcpu_register_area_virt": member("struct vcpu_register_runstate_memory_area", "addr.h"),
    "xen_9pfs_data_intf": "struct xen_9pfs_data_intf",  # by macro, so not in the text
    "xen_add_to_physmap_batch_extra": "union xen_add_to_physmap_batch_extra",
    "xen_pmu_version": member("struct xen_pmu_params", "version"),
    "xenfb_in_event": "union xenfb_in_event",
    "xenfb_out_event": "union xenfb_out_event",
    "xenkbd_in_event": "union xenkbd_in_event",
    "xenkbd_mtouch_pos": member("struct xenkbd_mtouch", "u.pos"),
    "xenkbd_mtouch_shape": member("struct xenkbd_mtouch", "u.shape"),
}
VALUES = {
    "evtchn_status_irq",
    "gnttab_copy_gmfn",
    "gnttab_copy_ref",
    "grant_status_t",
    "vcpu_register_area_phys",
    "xen_capabilities_info_t",
    "xen_changeset_info_t",
    "xen_commandline_t",
    "xen_extraversion_t",
}
C_SIZES = {"sring": "offsetof(struct blkif_sring, ring)"}  # the entries follow
C_FIELDS: dict[tuple[str, str], str | None] = {
    ("sring", "pad"): "__pad",
    ("grant_entry_v2", "u"): "full_page",
    ("vcpu_register_area_virt", "v"): "p",
    ("xen_pmu_arch", "lapic_lvtpc"): "l",
    ("xen_pvcalls_response", "id"): "u",
    ("ioreq", "bits"): None,  # bit-fields: test_ioreq_bits
    ("buf_ioreq", "bits"): None,
}
X86_64_ONLY = {"cpu_user_regs", "vcpu_guest_context"}
WITHOUT_HEADER = {"xen_9pfs_header", "SECTOR_SIZE", "SECTORS_PER_PAGE"}

PRELUDE = """
#define __XEN_TOOLS__ 1
#include <stddef.h>
#include <stdint.h>
void *memcpy(void *, const void *, size_t);
#define __XEN__ 1
#define XEN_ERRNO(name, value) XEN_##name = value,
enum {
#include <xen/errno.h>
};
#undef XEN_ERRNO
#undef __XEN__
"""


@dataclass(frozen=True)
class Check:
    """One number: what it is, how C says it, and what Python says."""

    what: str
    c: str
    python: int


def load(name: str) -> ModuleType:
    return importlib.import_module(f"hvmlite.abi.{name}")


def header_words(name: str) -> set[str]:
    """Every identifier in a module's headers, comments aside."""
    text = "\n".join((INCLUDE / header).read_text() for header in HEADERS[name])
    words = set(re.findall(r"\w+", re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)))
    if name == "errno":
        words = {f"XEN_{word}" for word in words}
    return words


def declared_structs(module: ModuleType) -> Iterator[type[Struct]]:
    for name, value in vars(module).items():
        if (
            isinstance(value, type)
            and issubclass(value, Struct)
            and value.__module__ == module.__name__
            and name == value.__name__
        ):
            yield value


def declared_constants(module: ModuleType) -> Iterator[tuple[str, int | str]]:
    for name, value in vars(module).items():
        if name.startswith("_") and not name.startswith("__HYPERVISOR_"):
            continue
        if isinstance(value, int | str) and not isinstance(value, enum.Enum):
            yield name, value


def struct_checks(struct_type: type[Struct], abi: Abi, absent: set[str]) -> Iterator[Check]:
    name = struct_type.__name__
    c_type = C_TYPES.get(name) or (name if name.endswith("_t") else f"struct {name}")
    fields = struct_type.layout(abi).fields.values()
    if not any(field.name in absent for field in fields):
        size = C_SIZES.get(name, f"sizeof({c_type})")
        yield Check(f"sizeof({name})", size, struct_type.sizeof(abi))
    if name in VALUES:
        return
    for field in fields:
        c_field = C_FIELDS.get((name, field.name), field.name.rstrip("_"))
        if c_field is None or field.size == 0 or field.name in absent:
            continue
        where = f"{name}.{field.name}"
        yield Check(f"offset of {where}", f"offsetof({c_type}, {c_field})", field.offset)
        yield Check(f"size of {where}", f"sizeof((({c_type} *)0)->{c_field})", field.size)


def constant_checks(constants: Iterable[tuple[str, int | str]]) -> Iterator[Check]:
    for name, value in constants:
        expression = OWN_CONSTANTS.get(name, name)
        if expression is not None and isinstance(value, int):
            yield Check(name, expression, value)


def compile_probe(source: str, abi: Abi, directory: Path) -> dict[str, bytes]:
    """The bytes of every `probe*` object that the source defines."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("no C compiler: install gcc")
    file = directory / f"probe-{abi.name}.c"
    file.write_text(source)
    output = file.with_suffix(".o")
    flag = "-m64" if abi is Abi.X86_64 else "-m32"
    command = [gcc, flag, "-ffreestanding", "-fno-pic", "-w", "-c", str(file), "-o", str(output)]
    # linux/elf.h needs asm/types.h, which Debian has for the 64-bit ABI alone (and is for both).
    command += ["-idirafter", "/usr/include/x86_64-linux-gnu"]
    plain = {**os.environ, "LC_ALL": "C"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=plain)
    if f"unrecognized command-line option '{flag}'" in result.stderr:
        pytest.skip(f"gcc has no {flag}: install gcc for x86 (gcc-x86-64-linux-gnu)")
    assert result.returncode == 0, result.stderr[:4000]
    found: dict[str, bytes] = {}
    with output.open("rb") as stream:
        elf = ELFFile(stream)
        table = elf.get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        for symbol in table.iter_symbols():
            if symbol["st_info"]["type"] == "STT_OBJECT" and symbol.name.startswith("probe"):
                data = elf.get_section(symbol["st_shndx"]).data()
                start = symbol["st_value"]
                found[symbol.name] = data[start : start + symbol["st_size"]]
    return found


def all_includes() -> str:
    seen = dict.fromkeys(
        header for name in HEADERS for header in HEADERS[name] if header != "errno.h"
    )
    return PRELUDE + "".join(f"#include <xen/{header}>\n" for header in seen)


def differences(checks: list[Check], abi: Abi, directory: Path) -> list[str]:
    """What C and Python disagree about."""
    numbers = ",\n".join(f"(unsigned long long)(long long)({check.c})" for check in checks)
    source = f"{all_includes()}const unsigned long long probe[] = {{\n{numbers}\n}};\n"
    values = struct.unpack(f"<{len(checks)}Q", compile_probe(source, abi, directory)["probe"])
    return [
        f"{abi.name}: {check.what} is {value:#x} in C, {check.python:#x} in Python"
        for check, value in zip(checks, values, strict=True)
        if value != check.python & (1 << 64) - 1
    ]


@pytest.fixture(scope="module", autouse=True)
def headers() -> Path:
    if not (INCLUDE / "xen.h").exists():
        pytest.skip("no Xen headers: install libxen-dev")
    return INCLUDE


@pytest.fixture(scope="module")
def absent() -> dict[str, set[str]]:
    """For each module, what it declares and its headers do not mention."""
    result = {}
    for name in HEADERS:
        module = load(name)
        words = header_words(name)
        declared = {constant for constant, _ in declared_constants(module)} - set(OWN_CONSTANTS)
        for struct_type in declared_structs(module):
            declared.add(struct_type.__name__)
            declared |= {
                field
                for owner, field in NEWER_FIELDS
                if owner == struct_type.__name__ and field not in words
            }
        declared -= set(C_TYPES) | WITHOUT_HEADER
        result[name] = declared - words
    return result


def test_every_module_is_checked() -> None:
    modules = {module.name for module in pkgutil.iter_modules(hvmlite.abi.__path__)}
    assert modules == set(HEADERS) | MODULES_WITHOUT_HEADER


def test_only_what_is_newer_is_absent(absent: dict[str, set[str]]) -> None:
    newer = set(NEWER_CONSTANTS) | set(NEWER_STRUCTS) | {field for _, field in NEWER_FIELDS}
    found = set().union(*absent.values())
    text = (INCLUDE / "xen-compat.h").read_text()
    version = re.search(r"define __XEN_LATEST_INTERFACE_VERSION__\s+(\w+)", text)
    assert version is not None
    if int(version[1], 16) == INTERFACE_VERSION_4_17:
        assert found == newer
    else:
        assert found <= newer


@pytest.mark.parametrize("abi", list(Abi), ids=lambda abi: abi.name)
def test_structs_and_constants(abi: Abi, absent: dict[str, set[str]], tmp_path: Path) -> None:
    checks: list[Check] = []
    for name in HEADERS:
        module = load(name)
        skip = absent[name] | WITHOUT_HEADER | (X86_64_ONLY if abi is Abi.X86_32 else set())
        for struct_type in declared_structs(module):
            if struct_type.__name__ not in skip:
                checks += struct_checks(struct_type, abi, absent[name])
        constants = [item for item in declared_constants(module) if item[0] not in skip]
        checks += constant_checks(constants)
    channels = load("event_channel")
    two_level = getattr(channels, f"EVTCHN_2L_NR_CHANNELS_{abi.name}")
    checks.append(Check("2-level channels", "EVTCHN_2L_NR_CHANNELS", two_level))
    for state in XenbusState:
        checks.append(Check(state.name, state.name, state.value))
    for call in Hypercall:
        checks.append(Check(call.name, f"__HYPERVISOR_{call.name}", call.value))
    for errno in Errno:
        checks.append(Check(errno.name, f"XEN_{errno.name}", errno.value))
    assert len(checks) > 2000
    assert not differences(checks, abi, tmp_path)


def test_strings(tmp_path: Path) -> None:
    strings = [
        item for name in HEADERS for item in declared_constants(load(name)) if type(item[1]) is str
    ]
    source = all_includes() + "".join(f"const char probe_{n}[] = {n};\n" for n, _ in strings)
    found = compile_probe(source, Abi.X86_64, tmp_path)
    assert strings
    assert found == {f"probe_{n}": str(v).encode() + b"\0" for n, v in strings}


def test_xenstore_error_names() -> None:
    text = (INCLUDE / "io/xs_wire.h").read_text()
    assert tuple(re.findall(r"^ +XSD_ERROR\((\w+)\)", text, flags=re.MULTILINE)) == XSD_ERRORS


def test_hypervisor_only() -> None:
    text = (INCLUDE / "event_channel.h").read_text()
    (value,) = re.findall(r"define EVTCHNOP_reset_cont\s+(\d+)", text)
    assert load("event_channel").EVTCHNOP_reset_cont == int(value)


def test_ioreq_bits(tmp_path: Path) -> None:
    ioreq = load("ioreq")
    source = all_includes() + (
        "const struct ioreq probe_state = {.state = 15}, probe_ptr = {.data_is_ptr = 1},"
        " probe_dir = {.dir = 1}, probe_df = {.df = 1};\n"
        "const struct buf_ioreq probe_buf_type = {.type = 0xff}, probe_buf_dir = {.dir = 1},"
        " probe_buf_size = {.size = 3}, probe_buf_addr = {.addr = 0xfffff};\n"
    )
    for abi in Abi:
        found = compile_probe(source, abi, tmp_path)
        whole = {
            name: ioreq.ioreq.unpack(found[f"probe_{name}"], abi).bits
            for name in ("state", "ptr", "dir", "df")
        }
        assert whole == {
            "state": ioreq.IOREQ_STATE_MASK,
            "ptr": ioreq.IOREQ_DATA_IS_PTR,
            "dir": ioreq.IOREQ_DIR,
            "df": ioreq.IOREQ_DF,
        }
        buffered = {
            name: ioreq.buf_ioreq.unpack(found[f"probe_buf_{name}"], abi).bits
            for name in ("type", "dir", "size", "addr")
        }
        assert buffered == {
            "type": 0xFF,
            "dir": 1 << ioreq.BUF_IOREQ_DIR_SHIFT,
            "size": 3 << ioreq.BUF_IOREQ_SIZE_SHIFT,
            "addr": 0xFFFFF << ioreq.BUF_IOREQ_ADDR_SHIFT,
        }


def test_ring_sizes(tmp_path: Path) -> None:
    rings = ("blkif", "netif_tx", "netif_rx", "xen_netif_ctrl", "xen_pvcalls")
    for abi in Abi:
        checks = []
        for ring in rings:
            source = (
                f"{all_includes()}const unsigned probe[] = {{sizeof(union {ring}_sring_entry)}};"
            )
            (entry,) = struct.unpack("<I", compile_probe(source, abi, tmp_path)["probe"])
            for size in (4096, 8192, 65536):
                c = f"__CONST_RING_SIZE({ring}, {size})"
                checks.append(Check(c, c, RING_SIZE(entry, size)))
        assert not differences(checks, abi, tmp_path)


def test_a_wrong_declaration_is_found(tmp_path: Path) -> None:
    class evtchn_alloc_unbound(Struct):
        dom: u16 = 0
        remote_dom: u64 = 0
        port: u16 = 0

    wrong = [
        *struct_checks(evtchn_alloc_unbound, Abi.X86_64, set()),
        *constant_checks([("EVTCHNOP_send", 5), ("EVTCHNOP_status", 5)]),
    ]
    found = differences(wrong, Abi.X86_64, tmp_path)
    assert [line.split(" is ")[0] for line in found] == [
        "X86_64: sizeof(evtchn_alloc_unbound)",
        "X86_64: offset of evtchn_alloc_unbound.remote_dom",
        "X86_64: size of evtchn_alloc_unbound.remote_dom",
        "X86_64: offset of evtchn_alloc_unbound.port",
        "X86_64: size of evtchn_alloc_unbound.port",
        "X86_64: EVTCHNOP_send",
    ]


def test_an_unknown_field_is_found(tmp_path: Path) -> None:
    class evtchn_close(Struct):
        prot: u64 = 0

    with pytest.raises(AssertionError, match="no member named 'prot'"):
        differences(list(struct_checks(evtchn_close, Abi.X86_64, set())), Abi.X86_64, tmp_path)


def test_the_ring_header_is_a_cache_line() -> None:
    assert sring.sizeof(Abi.X86_64) == sring.sizeof(Abi.X86_32) == 64
