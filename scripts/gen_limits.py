"""Writes the tables of docs/limits.md from the code that answers the guest.

Each table lies between two comment lines, `<!-- generated: NAME -->` and `<!-- end: NAME -->`; the
rest of the page is written by hand and left alone. With --check nothing is written, and the exit
status is 1 if the page is not what this script would write; tests/unit/test_limits.py looks too.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from hvmlite.abi import hvm
from hvmlite.abi.errno import Errno
from hvmlite.engine.tcg.vcpu import msr_map
from hvmlite.hypervisor.fault import GeneralProtection
from hvmlite.hypervisor.hvm_params import DEPRECATED, GUEST_READS, GUEST_WRITES
from hvmlite.hypervisor.hypercalls.registry import OLDEST, Family, OpInfo
from hvmlite.hypervisor.hypercalls.table import FAMILIES
from hvmlite.hypervisor.msr import HYPERCALL_PAGE_MSR, MSR_EFER, MSR_TSC, read_msr, write_msr
from hvmlite.hypervisor.release import DEFAULT, RELEASES
from hvmlite.toolstack.hardware import LapicDevice, MtrrDevice

if TYPE_CHECKING:
    from hvmlite.hypervisor.call import Call
    from hvmlite.hypervisor.vcpu import Vcpu

PAGE = Path(__file__).resolve().parents[1] / "docs" / "limits.md"

# Operations that look at their arguments and then refuse, whatever these are.
REFUSES = {
    "EVTCHNOP_reset_cont": "-EBUSY: a reset is never done in parts",
    "HVMOP_pagetable_dying": "-EINVAL: nested paging has nothing to drop",
    "PHYSDEVOP_map_pirq": "-EOPNOTSUPP, -EPERM or -ESRCH: a PVH domU has no PIRQs",
    "PHYSDEVOP_unmap_pirq": "-EOPNOTSUPP, -EPERM or -ESRCH: a PVH domU has no PIRQs",
    "SCHEDOP_remote_shutdown": "-EPERM or -ESRCH: for a control domain",
    "XENMEM_access_op": "-EPERM, -EINVAL or -ESRCH: for a monitor of another domain",
    "XENMEM_claim_pages": "-EPERM or -EINVAL (32-bit callers: -ENOSYS): for domain 0",
    "XENMEM_exchange": "-EOPNOTSUPP: a PVH guest does not see machine frames",
    "XENMEM_get_pod_target": "-EPERM or -ESRCH: no population on demand",
    "XENMEM_get_vnumainfo": "-EOPNOTSUPP: no vNUMA",
    "XENMEM_machphys_compat_mfn_list": "-EOPNOTSUPP: for 32-bit PV guests",
    "XENMEM_set_pod_target": "-EPERM or -ESRCH: no population on demand",
    "XENVER_commandline2": "-EPERM: Xen tells it to a control domain only",
}

REMARKS = {
    "EVTCHNOP_bind_pirq": "binds, but no event ever comes",
    "EVTCHNOP_bind_virq": "from 4.21 on -EBUSY for the global VIRQs, which are domain 0's",
    "EVTCHNOP_status": "the caller's own ports only; domain 0: -EPERM",
    "GNTTABOP_copy": "a destination behind a read-only grant mapping is refused",
    "HVMOP_guest_request_vm_event": "but nobody monitors the domain",
    "HVMOP_xentrace": "checked, then dropped: there is no trace buffer",
    "SCHEDOP_shutdown": "suspend and soft_reset end the domain: nothing is saved or reset",
    "SCHEDOP_yield": "returns at once",
    "VCPUOP_set_singleshot_timer": "late by the timer slack while the guest is busy",
    "XENMEM_add_to_physmap": "spaces shared_info, grant_table, gmfn and gmfn_range",
    "XENMEM_add_to_physmap_batch": "spaces shared_info, grant_table and gmfn",
    "XENMEM_get_sharing_freed_pages": "always 0: memory is never shared",
    "XENMEM_get_sharing_shared_pages": "always 0: memory is never shared",
    "XENMEM_machphys_mfn_list": "zeros: a PVH guest can map none (32-bit callers: -EOPNOTSUPP)",
    "XENMEM_maximum_ram_page": "of the host's pool, which is as large as the toolstack made it",
    "XENMEM_reserved_device_memory_map": "always empty",
    "XENVER_changeset": "a fixed text",
    "XENVER_commandline": "`<denied>`, as Xen tells a domU",
    "XENVER_compile_info": "fixed texts",
    "multicall": "not inside another multicall",
    "set_timer_op": "late by the timer slack while the guest is busy",
    "vm_assist": "only VMASST_TYPE_runstate_update_flag, others -EINVAL",
}

# Said of a hypercall as a whole, above the table of its operations.
NOTES = {
    "argo_op": "Only for a domain that the toolstack lets use Argo, which `hvmlite run` does not; "
    "for all others -ENOSYS, as of a Xen that is built as usual.",
    "vcpu_op": "A vCPU that does not exist is -ENOENT, whatever the operation.",
}

MSR_NAMES = {
    0x10: "TSC",
    0x1B: "APIC_BASE",
    0x8B: "microcode revision, PATCH_LEVEL",
    0x49: "PRED_CMD",
    0xFE: "MTRRcap",
    0x174: "SYSENTER_CS, _ESP, _EIP",
    0x1A0: "MISC_ENABLE",
    0x1D9: "DEBUGCTL",
    0x200: "variable MTRRs",
    0x250: "fixed MTRRs, 64 KiB",
    0x258: "fixed MTRRs, 16 KiB",
    0x268: "fixed MTRRs, 4 KiB",
    0x277: "PAT",
    0x2FF: "MTRRdefType",
    0x6E0: "TSC_DEADLINE",
    0x800: "x2APIC",
    0xDA0: "XSS",
    0x40000000: "the hypercall page",
    0x40000200: "the hypercall page under Viridian",
    0xC0000080: "EFER",
    0xC0000081: "STAR, LSTAR, CSTAR, SFMASK",
    0xC0000100: "FS_BASE, GS_BASE, KERNEL_GS_BASE, TSC_AUX",
    0xC0010010: "SYSCFG",
    0xC0010015: "HWCR",
    0xC001001F: "NB_CFG",
    0xC0010055: "interrupt pending and C1E",
}

_MSR_RANGES = (
    range(0x2000),
    range(0x40000000, 0x40000300),
    range(0xC0000000, 0xC0002000),
    range(0xC0010000, 0xC0012000),
)
# Where the permission map (AMD64 APM volume 2, section 15.11) has the first MSR of a range.
_MAP_OFFSETS = {0x0: 0x000, 0xC0000000: 0x800, 0xC0010000: 0x1000}


class LimitsError(Exception):
    """The page lacks a mark, or this script has no words for something new."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


# ---- hypercalls ---------------------------------------------------------------------------------


class _DependsError(Exception):
    """A handler looked at the call before it answered."""


class _Looking:
    """A call that shows when a handler looks at it; refusals are only counted."""

    def __init__(self) -> None:
        self.domain = SimpleNamespace(unknown_calls=Counter())

    def __getattr__(self, name: str) -> object:
        raise _DependsError(name)


def refusal_of(family: Family) -> str:
    """Return what a refused family answers: one errno, or that it depends on the arguments."""
    try:
        return f"-{Errno(-family.handler(cast('Call', _Looking()))).name}"
    except _DependsError:
        return "an errno by its arguments, as Xen's"


def operation(number: int, info: OpInfo) -> tuple[str, str, str]:
    """Return the row of one operation of a hypercall."""
    since = "" if info.since <= OLDEST else f"from {info.since[0]}.{info.since[1]} on: "
    if info.handler is None:
        answer = f"refused, -{Errno(info.errno).name}"
        answer += f": {info.why}" if info.why else ""
    elif info.name in REFUSES:
        answer = f"{since}refused, {REFUSES[info.name]}"
    else:
        remark = REMARKS.get(info.name, "")
        answer = f"{since}yes{f': {remark}' if remark else ''}"
    return str(number), f"`{info.name}`", answer


def hypercalls() -> str:
    """Return one table for each hypercall with operations, and one for all that have none."""
    parts = []
    single = []
    for family in sorted(FAMILIES, key=lambda family: family.number):
        if family.ops:
            rows = [operation(number, family.ops[number]) for number in sorted(family.ops)]
            parts.append(f"#### {family.name} ({family.number})")
            if family.name in NOTES:
                parts.append(NOTES[family.name])
            parts.append(table(("no.", "operation", "answer"), rows))
        elif family.why:
            answer = f"refused, {refusal_of(family)}: {family.why}"
            single.append((str(family.number), f"`{family.name}`", answer))
        else:
            remark = REMARKS.get(family.name, "")
            answer = f"yes{f': {remark}' if remark else ''}"
            single.append((str(family.number), f"`{family.name}`", answer))
    parts.append("#### Hypercalls without operations of their own, or refused as a whole")
    parts.append(table(("no.", "hypercall", "answer"), single))
    return "\n\n".join(parts)


# ---- HVM parameters, releases -------------------------------------------------------------------


def _param_names() -> dict[int, str]:
    return {
        value: name
        for name, value in vars(hvm).items()
        if name.startswith("HVM_PARAM_")
        and not name.startswith("HVM_PARAM_CALLBACK_TYPE_")
        and isinstance(value, int)
        and value < hvm.HVM_NR_PARAMS
    }


def params() -> str:
    """Return the parameters that a guest may use, and those that are gone."""
    names = _param_names()
    rows = [
        (
            str(index),
            f"`{names[index]}`",
            "yes" if index in GUEST_READS else "no",
            "yes" if index in GUEST_WRITES else "no",
        )
        for index in sorted(GUEST_READS | GUEST_WRITES)
    ]
    gone = ", ".join(f"`{names[index]}`" for index in sorted(DEPRECATED))
    return "\n\n".join(
        (
            table(("no.", "parameter", "read", "written"), rows),
            f"-EINVAL, because Xen has retired them: {gone}.",
        )
    )


def releases() -> str:
    """Return the releases that can be presented."""
    rows = [
        (
            f"{release.major}.{release.minor}{release.extra}"
            + (" (default)" if key == DEFAULT else ""),
            f"`{release.features:08x}`",
        )
        for key, release in RELEASES.items()
    ]
    return table(("`--xen-version`", "XENVER_get_features"), rows)


# ---- MSRs ---------------------------------------------------------------------------------------


def _open_in_engine(index: int) -> tuple[bool, bool]:
    """Whether a guest reads and writes the MSR without an exit."""
    for first, offset in _MAP_OFFSETS.items():
        if first <= index < first + 0x2000:
            bits = msr_map()[offset + (index - first) // 4] >> 2 * ((index - first) % 4)
            return not bits & 1, not bits & 2
    return False, False


def _devices() -> dict[int, str]:
    owned: dict[int, str] = {}
    for name, ranges in (("local APIC", LapicDevice.ranges), ("MTRR", MtrrDevice(1).ranges)):
        for first, last in ranges:
            owned |= dict.fromkeys(range(first, last + 1), name)
    return owned


def _hypervisor(index: int) -> tuple[str, str]:
    """How an MSR is read and written that no device has; "" where that is #GP."""
    vcpu = cast(
        "Vcpu",
        SimpleNamespace(
            engine=SimpleNamespace(get=lambda _name: 0), domain=SimpleNamespace(msr_devices={})
        ),
    )
    if index == MSR_EFER:
        return "value", "checked"
    if index == MSR_TSC:
        return "value", ""
    try:
        read = str(read_msr(vcpu, index))
    except GeneralProtection:
        read = ""
    if index == HYPERCALL_PAGE_MSR:
        return read, "fills the page"
    try:
        write_msr(vcpu, index, 0)
    except GeneralProtection:
        return read, ""
    return read, "ignored"


def _answers() -> Iterator[tuple[int, str, str]]:
    """Every MSR that does not answer #GP to both, with how it is read and written."""
    owned = _devices()
    for index in (index for one in _MSR_RANGES for index in one):
        read, write = _hypervisor(index)
        if index in owned:
            read = write = owned[index]
        in_cpu = _open_in_engine(index)
        read = "CPU" if in_cpu[0] else read
        write = "CPU" if in_cpu[1] else write
        if read or write:
            yield index, read or "#GP", write or "#GP"


def msrs() -> str:
    """Return the MSRs that a guest has; neighbours that answer alike share a row."""
    rows = []
    numbered = enumerate(_answers())
    for _, group in groupby(numbered, lambda item: (item[1][0] - item[0], item[1][1:])):
        run = [answer for _, answer in group]
        first, last = run[0][0], run[-1][0]
        if first not in MSR_NAMES:
            raise LimitsError(f"MSR_NAMES has no name for the MSR {first:#x}")
        where = f"{first:#x}" if first == last else f"{first:#x} to {last:#x}"
        rows.append((where, MSR_NAMES[first], *run[0][1:]))
    return table(("MSR", "what", "RDMSR", "WRMSR"), rows)


# ---- the page -----------------------------------------------------------------------------------

TABLES = {"hypercalls": hypercalls, "params": params, "msrs": msrs, "releases": releases}


def render(text: str) -> str:
    """Return the page `text` with its tables made anew. Raises LimitsError if a mark is missing."""
    for name, make in TABLES.items():
        begin, end = f"<!-- generated: {name} -->", f"<!-- end: {name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        found = list(pattern.finditer(text))
        if len(found) != 1:
            raise LimitsError(f"expected one {begin} ... {end}, found {len(found)}")
        start, stop = found[0].span()
        text = f"{text[:start]}{begin}\n\n{make()}\n\n{end}{text[stop:]}"
    return text


def main() -> int:
    """Write the tables, or check them."""
    parser = argparse.ArgumentParser(description="write the tables of docs/limits.md")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if stale")
    check: bool = parser.parse_args().check
    try:
        old = PAGE.read_text()
        new = render(old)
    except (OSError, LimitsError) as error:
        print(f"gen_limits: {error}", file=sys.stderr)
        return 1
    if old == new:
        return 0
    if check:
        print("gen_limits: docs/limits.md is stale: run make docs", file=sys.stderr)
        return 1
    PAGE.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
