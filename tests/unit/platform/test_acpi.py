"""Proves that the ACPI tables are well formed and say what real Xen 4.17 tells a PVH domU.

Expected values are those recorded in a guest on Xen: the table walk with its ids, lengths and
flags, and the addresses in Linux's boot log. ACPICA's own tools judge the bytes where they are
installed. Cannot see whether a kernel brings its vCPUs up by these tables.
"""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from hvmlite.errors import UserError
from hvmlite.platform import acpi
from hvmlite.platform.acpi import AcpiTables, build_acpi

needs_iasl = pytest.mark.skipif(not shutil.which("iasl"), reason="acpica-tools is not installed")
needs_acpiexec = pytest.mark.skipif(
    not shutil.which("acpiexec"), reason="acpica-tools is not installed"
)


class Guest:
    """Reads tables as a guest does: by following addresses from the RSDP."""

    def __init__(self, tables: AcpiTables) -> None:
        self.tables = tables
        self.rsdp = acpi.acpi_rsdp.unpack(self.read(tables.rsdp_paddr, 36))
        self.xsdt = self.table(self.rsdp.xsdt_address)
        self.rsdt = self.table(self.rsdp.rsdt_address)
        self.fadt_paddr, *others = struct.unpack(f"<{(len(self.xsdt) - 36) // 8}Q", self.xsdt[36:])
        self.fadt = acpi.acpi_fadt.unpack(self.table(self.fadt_paddr))
        self.dsdt = self.table(self.fadt.x_dsdt)
        self.others = {self.table(address)[:4]: address for address in others}

    def read(self, gpa: int, size: int) -> bytes:
        for start, data in self.tables.blobs:
            if start <= gpa and gpa + size <= start + len(data):
                return data[gpa - start : gpa - start + size]
        raise AssertionError(f"no {size} bytes at {gpa:#x}")

    def table(self, gpa: int) -> bytes:
        data = self.read(gpa, struct.unpack("<I", self.read(gpa + 4, 4))[0])
        if data[:4] != b"FACS":
            assert sum(data) % 256 == 0, f"checksum of {data[:4]!r}"
        return data

    @property
    def madt(self) -> bytes:
        return self.table(self.others[b"APIC"])


@pytest.fixture
def guest() -> Guest:
    return Guest(build_acpi(2))


def test_sizes_are_the_specifications() -> None:
    sizes = {
        acpi.acpi_header: 36,
        acpi.acpi_rsdp: 36,
        acpi.acpi_gas: 12,
        acpi.acpi_10_fadt: 116,
        acpi.acpi_fadt: 268,
        acpi.acpi_facs: 64,
        acpi.acpi_madt: 44,
        acpi.acpi_madt_lapic: 8,
        acpi.acpi_info: 40,
    }
    assert {cls: cls.sizeof() for cls in sizes} == sizes
    assert acpi.acpi_10_fadt.offsetof("iapc_boot_arch") == 109
    assert acpi.acpi_fadt.offsetof("x_firmware_ctrl") == 132


def test_rsdp(guest: Guest) -> None:
    raw = guest.read(guest.tables.rsdp_paddr, 36)
    assert guest.rsdp.signature == b"RSD PTR "
    assert guest.rsdp.revision == 2
    assert guest.rsdp.length == 36
    assert guest.rsdp.oem_id == b"Xen\0\0\0"
    assert sum(raw[:20]) % 256 == 0
    assert sum(raw) % 256 == 0


@pytest.mark.parametrize("vcpus", [1, 2, 128])
def test_places_that_do_not_move(vcpus: int) -> None:
    guest = Guest(build_acpi(vcpus))
    assert guest.tables.rsdp_paddr == 0xFC00_8000
    assert [(gpa, len(data)) for gpa, data in guest.tables.blobs] == [
        (0xFC00_8000, 0x40),
        (0xFC00_0000, 0x1000),
        (0xFC00_1000, 0x7000),
    ]
    assert guest.fadt.x_firmware_ctrl == guest.fadt.v1.firmware_ctrl == 0xFC00_1000
    assert guest.fadt.x_dsdt == guest.fadt.v1.dsdt == 0xFC00_1040


def test_headers_of_a_one_vcpu_domain_match_the_boot_log() -> None:
    guest = Guest(build_acpi(1))
    assert guest.xsdt[:4] == b"XSDT"
    assert len(guest.xsdt) == 0x34
    assert len(guest.table(guest.fadt_paddr)) == 0x10C
    assert len(guest.madt) == 0x34
    revisions = [table[8] for table in (guest.xsdt, guest.rsdt, guest.madt, guest.dsdt)]
    assert revisions == [1, 1, 2, 5]
    for table in (guest.xsdt, guest.rsdt, guest.madt, guest.dsdt, guest.fadt.pack()):
        header = acpi.acpi_header.unpack(table)
        assert header.oem_id == b"Xen\0\0\0"
        assert header.oem_table_id == b"HVM\0\0\0\0\0"
        assert header.oem_revision == 0
        assert header.creator_id == b"HVML"


def test_fadt(guest: Guest) -> None:
    fadt = guest.fadt
    assert fadt.v1.header.signature == b"FACP"
    assert fadt.v1.header.revision == 5
    assert fadt.minor_version == 0
    assert fadt.v1.smi_cmd == 0
    assert fadt.v1.pm1a_evt_blk == fadt.x_pm1a_evt_blk.address == 0xB000
    assert fadt.v1.pm1_evt_len == 4
    assert fadt.v1.pm1a_cnt_blk == fadt.x_pm1a_cnt_blk.address == 0xB004
    assert fadt.v1.pm1_cnt_len == 2
    assert fadt.v1.p_lvl3_lat == 0xFFF
    assert fadt.v1.flags == 0x8175
    assert fadt.v1.iapc_boot_arch == 0x24
    assert fadt.v1.pm_tmr_blk == fadt.v1.pm_tmr_len == 0
    assert fadt.x_pm_tmr_blk == acpi.acpi_gas()


def test_rsdt_leads_to_an_acpi_1_fadt_and_the_same_madt(guest: Guest) -> None:
    fadt, madt = struct.unpack("<2I", guest.rsdt[36:])
    table = guest.table(fadt)
    assert table[:4] == b"FACP"
    assert table[8] == 1
    assert len(table) == 116
    assert madt == guest.others[b"APIC"]


def test_madt_of_two_vcpus(guest: Guest) -> None:
    assert len(guest.madt) == 60
    madt = acpi.acpi_madt.unpack(guest.madt)
    assert madt.lapic_address == 0xFEE0_0000
    assert madt.flags == 1
    assert guest.madt[44:52].hex() == "0008000001000000"
    assert guest.madt[52:60].hex() == "0008010201000000"


def test_vcpus_that_are_offline_are_listed_but_not_enabled() -> None:
    guest = Guest(build_acpi(4, online=2))
    entries = [acpi.acpi_madt_lapic.unpack(guest.madt, offset=44 + 8 * i) for i in range(4)]
    assert [entry.flags for entry in entries] == [1, 1, 0, 0]
    assert [entry.apic_id for entry in entries] == [0, 2, 4, 6]


def test_info_page(guest: Guest) -> None:
    info = acpi.acpi_info.unpack(guest.read(0xFC00_0000, 0x1000))
    assert info == acpi.acpi_info(
        nr_cpus=2,
        madt_csum_addr=guest.others[b"APIC"] + 9,
        madt_lapic0_addr=guest.others[b"APIC"] + 44,
        pci_hi=(0, 0),
    )


def test_facs_is_aligned_to_64_bytes(guest: Guest) -> None:
    facs = guest.table(guest.fadt.x_firmware_ctrl)
    assert facs[:4] == b"FACS"
    assert len(facs) == 64
    assert guest.fadt.x_firmware_ctrl % 64 == 0


def test_without_a_local_apic_there_is_no_madt() -> None:
    guest = Guest(build_acpi(2, lapic=False))
    assert guest.others == {}
    assert len(guest.rsdt) == 40
    assert b"_MAT" not in guest.dsdt
    assert not any(guest.read(0xFC00_0000, 0x1000))


def test_tables_move_with_their_base() -> None:
    guest = Guest(build_acpi(3, base=0x9000_0000))
    assert guest.tables.rsdp_paddr == 0x9000_8000
    assert guest.fadt.x_dsdt == 0x9000_1040


@pytest.mark.parametrize("base", [0xFC00_0800, -0x1000, 0xFFFF_8000])
def test_a_base_that_cannot_be(base: int) -> None:
    with pytest.raises(ValueError, match="no ACPI tables at"):
        build_acpi(1, base=base)


@pytest.mark.parametrize("vcpus", [0, -1, 129])
def test_number_of_vcpus_is_checked(vcpus: int) -> None:
    with pytest.raises(UserError, match=f"expected 1 to 128 vCPUs, got {vcpus}"):
        build_acpi(vcpus)


@pytest.mark.parametrize("online", [0, 5])
def test_number_of_online_vcpus_is_checked(online: int) -> None:
    with pytest.raises(UserError, match=f"expected 1 to 4 vCPUs online, got {online}"):
        build_acpi(4, online)


@needs_iasl
def test_iasl_has_no_complaint(guest: Guest, tmp_path: Path) -> None:
    tables = {
        "dsdt": guest.dsdt,
        "facp": guest.table(guest.fadt_paddr),
        "apic": guest.madt,
        "xsdt": guest.xsdt,
        "rsdt": guest.rsdt,
        "facs": guest.table(guest.fadt.x_firmware_ctrl),
    }
    for name, table in tables.items():
        (tmp_path / f"{name}.dat").write_bytes(table)
        run = subprocess.run(
            ["iasl", "-d", f"{name}.dat"], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        listing = (tmp_path / f"{name}.dsl").read_text()
        for text in (run.stdout + run.stderr, listing):
            for complaint in ("error", "warning", "invalid", "unknown"):
                assert complaint not in text.lower(), f"{name}: {text}"
    dsdt = (tmp_path / "dsdt.dsl").read_text()
    assert 'DefinitionBlock ("", "DSDT", 5, "Xen", "HVM", 0x00000000)' in dsdt
    assert "Processor (PR01, 0x01, 0x00000000, 0x00)" in dsdt


@needs_acpiexec
def test_acpica_interprets_the_dsdt(tmp_path: Path) -> None:
    guest = Guest(build_acpi(128, online=127))
    (tmp_path / "dsdt.dat").write_bytes(guest.dsdt)
    asked = ("PR00._UID", "PR7E._MAT", "PR7E._STA", "PR7F._UID", "PR7F._STA")
    commands = "; ".join(f"evaluate \\_SB.{name}" for name in asked)
    out = subprocess.run(
        ["acpiexec", "-b", commands, "dsdt.dat"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    answers = [
        line.split("=")[1].split("//")[0].strip() for line in out.splitlines() if "  [" in line
    ]
    assert answers == [
        "0000000000000000",
        "0000: 00 08 7E FC 01 00 00 00",
        "000000000000000F",
        "000000000000007F",
        "0000000000000000",
    ]
