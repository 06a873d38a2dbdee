"""ACPI tables of a PVH domU: RSDP, XSDT and RSDT, FADT, FACS, DSDT, MADT with local APICs.

It builds bytes for given guest-physical addresses and touches no guest. The tables say what Xen's
tools/libacpi and tools/libs/light/libxl_x86_acpi.c tell such a domain, but for the DSDT, which is
our own and holds the processors alone. Table layouts: ACPI specification 5.0, chapter 5, "ACPI
Software Programming Model"; port addresses: public/hvm/ioreq.h.
"""

from typing import Annotated, Final

from hvmlite.abi.layout import Array, Bytes, Struct, u8, u16, u32, u64
from hvmlite.errors import UserError
from hvmlite.platform import aml
from hvmlite.platform.apicdef import APIC_DEFAULT_PHYS_BASE
from hvmlite.records import record

ACPI_BASE: Final = 0xFC00_0000
"""ACPI_INFO_PHYSICAL_ADDRESS of Xen's tools: the info page, then the tables, then the RSDP."""
INFO_SIZE: Final = 0x1000
TABLES_OFFSET: Final = INFO_SIZE
TABLES_SIZE: Final = 0x7000
RSDP_OFFSET: Final = TABLES_OFFSET + TABLES_SIZE
RSDP_SIZE: Final = 64
"""Bytes that the memory map gives to the RSDP; the structure itself takes 36."""

HVM_MAX_VCPUS: Final = 128

OEM_ID: Final = b"Xen"
OEM_TABLE_ID: Final = b"HVM"
CREATOR_ID: Final = b"HVML"

ACPI_REVISION: Final = 5

_ALIGN: Final = 16
_SCI_INTERRUPT: Final = 9
_PM1A_EVT_BLK: Final = 0xB000
_PM1_EVT_LEN: Final = 4
_PM1A_CNT_BLK: Final = 0xB004
_PM1_CNT_LEN: Final = 2
_PM_TMR_BLK: Final = 0xB008
_PM_TMR_LEN: Final = 4
_GPE0_BLK: Final = 0xAFE0
_GPE0_BLK_LEN: Final = 4
_RESET_PORT: Final = 0xCF9
_RESET_VALUE: Final = 6
_NO_C2_C3: Final = 0xFFF  # a latency so large that C2 and C3 do not exist

SYSTEM_IO: Final = 1

FADT_WBINVD: Final = 1 << 0
FADT_PROC_C1: Final = 1 << 2
FADT_PWR_BUTTON: Final = 1 << 4  # set: no fixed-hardware button
FADT_SLP_BUTTON: Final = 1 << 5
FADT_FIX_RTC: Final = 1 << 6
FADT_TMR_VAL_EXT: Final = 1 << 8
FADT_USE_PLATFORM_CLOCK: Final = 1 << 15

IAPC_NO_VGA: Final = 1 << 2
IAPC_NO_CMOS_RTC: Final = 1 << 5

MADT_PCAT_COMPAT: Final = 1 << 0
LAPIC_ENABLED: Final = 1 << 0

STA_PRESENT_ENABLED: Final = 0xF


class acpi_header(Struct, packed=True):
    """DESCRIPTION_HEADER: what every table but RSDP and FACS begins with."""

    signature: Annotated[bytes, Bytes(4)] = b""
    length: u32 = 0
    revision: u8 = 0
    checksum: u8 = 0
    oem_id: Annotated[bytes, Bytes(6)] = OEM_ID
    oem_table_id: Annotated[bytes, Bytes(8)] = OEM_TABLE_ID
    oem_revision: u32 = 0
    creator_id: Annotated[bytes, Bytes(4)] = CREATOR_ID
    creator_revision: u32 = 0


class acpi_rsdp(Struct, packed=True):
    """Root System Description Pointer, revision 2."""

    signature: Annotated[bytes, Bytes(8)] = b"RSD PTR "
    checksum: u8 = 0
    oem_id: Annotated[bytes, Bytes(6)] = OEM_ID
    revision: u8 = 2
    rsdt_address: u32 = 0
    length: u32 = 0
    xsdt_address: u64 = 0
    extended_checksum: u8 = 0
    reserved: Annotated[bytes, Bytes(3)] = b""


class acpi_gas(Struct, packed=True):
    """Generic Address Structure: where a register lies, sizes in bits."""

    address_space_id: u8 = 0
    register_bit_width: u8 = 0
    register_bit_offset: u8 = 0
    access_size: u8 = 0
    address: u64 = 0


class acpi_10_fadt(Struct, packed=True):
    """Fixed ACPI Description Table of ACPI 1.0; later revisions append to it."""

    header: acpi_header
    firmware_ctrl: u32 = 0
    dsdt: u32 = 0
    int_model: u8 = 0
    preferred_pm_profile: u8 = 0
    sci_int: u16 = 0
    smi_cmd: u32 = 0
    acpi_enable: u8 = 0
    acpi_disable: u8 = 0
    s4bios_req: u8 = 0
    pstate_cnt: u8 = 0
    pm1a_evt_blk: u32 = 0
    pm1b_evt_blk: u32 = 0
    pm1a_cnt_blk: u32 = 0
    pm1b_cnt_blk: u32 = 0
    pm2_cnt_blk: u32 = 0
    pm_tmr_blk: u32 = 0
    gpe0_blk: u32 = 0
    gpe1_blk: u32 = 0
    pm1_evt_len: u8 = 0
    pm1_cnt_len: u8 = 0
    pm2_cnt_len: u8 = 0
    pm_tmr_len: u8 = 0
    gpe0_blk_len: u8 = 0
    gpe1_blk_len: u8 = 0
    gpe1_base: u8 = 0
    cst_cnt: u8 = 0
    p_lvl2_lat: u16 = 0
    p_lvl3_lat: u16 = 0
    flush_size: u16 = 0
    flush_stride: u16 = 0
    duty_offset: u8 = 0
    duty_width: u8 = 0
    day_alrm: u8 = 0
    mon_alrm: u8 = 0
    century: u8 = 0
    iapc_boot_arch: u16 = 0
    reserved: u8 = 0
    flags: u32 = 0


class acpi_fadt(Struct, packed=True):
    """Fixed ACPI Description Table, revision 5."""

    v1: acpi_10_fadt
    reset_reg: acpi_gas = acpi_gas()
    reset_value: u8 = 0
    arm_boot_arch: u16 = 0
    minor_version: u8 = 0
    x_firmware_ctrl: u64 = 0
    x_dsdt: u64 = 0
    x_pm1a_evt_blk: acpi_gas = acpi_gas()
    x_pm1b_evt_blk: acpi_gas = acpi_gas()
    x_pm1a_cnt_blk: acpi_gas = acpi_gas()
    x_pm1b_cnt_blk: acpi_gas = acpi_gas()
    x_pm2_cnt_blk: acpi_gas = acpi_gas()
    x_pm_tmr_blk: acpi_gas = acpi_gas()
    x_gpe0_blk: acpi_gas = acpi_gas()
    x_gpe1_blk: acpi_gas = acpi_gas()
    sleep_control_reg: acpi_gas = acpi_gas()
    sleep_status_reg: acpi_gas = acpi_gas()


class acpi_facs(Struct, packed=True):
    """Firmware ACPI Control Structure; it carries no checksum."""

    signature: Annotated[bytes, Bytes(4)] = b"FACS"
    length: u32 = 0
    hardware_signature: u32 = 0
    firmware_waking_vector: u32 = 0
    global_lock: u32 = 0
    flags: u32 = 0
    x_firmware_waking_vector: u64 = 0
    version: u8 = 1
    reserved: Annotated[bytes, Bytes(31)] = b""


class acpi_madt(Struct, packed=True):
    """Multiple APIC Description Table, before its interrupt controller structures."""

    header: acpi_header
    lapic_address: u32 = 0
    flags: u32 = 0


class acpi_madt_lapic(Struct, packed=True):
    """Processor Local APIC structure (type 0)."""

    type: u8 = 0
    length: u8 = 8
    acpi_processor_id: u8 = 0
    apic_id: u8 = 0
    flags: u32 = 0


class acpi_info(Struct):
    """What Xen's DSDT reads at ACPI_BASE (struct acpi_info of tools/libacpi/build.c)."""

    devices: u8 = 0
    nr_cpus: u16 = 0
    pci_min: u32 = 0
    pci_len: u32 = 0
    madt_csum_addr: u32 = 0
    madt_lapic0_addr: u32 = 0
    vm_gid_addr: u32 = 0
    pci_hi: Annotated[tuple[int, ...], Array(u64, 2)] = ()


@record(frozen=True)
class AcpiTables:
    """Bytes to load into the guest."""

    blobs: tuple[tuple[int, bytes], ...]
    """(guest-physical address, bytes) of the RSDP, of the info page and of the tables."""
    rsdp_paddr: int
    """For hvm_start_info.rsdp_paddr."""


def build_acpi(
    vcpus: int, online: int | None = None, lapic: bool = True, base: int = ACPI_BASE
) -> AcpiTables:
    """The ACPI tables of a domain with `vcpus` vCPUs, the first `online` (None: all) of them up.

    Without `lapic` there is no MADT: a vCPU beyond the first then starts by VCPUOP_initialise only.
    `base` is page-aligned and leaves RSDP_OFFSET + RSDP_SIZE bytes below 4 GiB.
    Raises UserError if the numbers of vCPUs make no domain.
    """
    if not 1 <= vcpus <= HVM_MAX_VCPUS:
        raise UserError(f"expected 1 to {HVM_MAX_VCPUS} vCPUs, got {vcpus}")
    if online is None:
        online = vcpus
    if not 1 <= online <= vcpus:
        raise UserError(f"expected 1 to {vcpus} vCPUs online, got {online}")
    if base % INFO_SIZE or not 0 <= base <= (1 << 32) - RSDP_OFFSET - RSDP_SIZE:
        raise ValueError(f"no ACPI tables at {base:#x}")

    lapics = [_lapic(vcpu, vcpu < online) for vcpu in range(vcpus)]
    area = _Area(base + TABLES_OFFSET, TABLES_SIZE)
    info = acpi_info()

    facs = area.place(acpi_facs(length=acpi_facs.sizeof()).pack())
    dsdt = area.place(_dsdt(lapics, lapic))
    fadt_10 = area.place(_fadt_10(facs, dsdt))
    fadt = area.place(_fadt(facs, dsdt))
    secondary: list[int] = []
    if lapic:
        madt = area.place(_madt(lapics))
        info.nr_cpus = vcpus
        info.madt_csum_addr = madt + acpi_header.offsetof("checksum")
        info.madt_lapic0_addr = madt + acpi_madt.sizeof()
        secondary.append(madt)
    xsdt = area.place(_root_table(b"XSDT", 8, [fadt, *secondary]))
    rsdt = area.place(_root_table(b"RSDT", 4, [fadt_10, *secondary]))

    rsdp_paddr = base + RSDP_OFFSET
    return AcpiTables(
        blobs=(
            (rsdp_paddr, _rsdp(rsdt, xsdt).ljust(RSDP_SIZE, b"\0")),
            (base, info.pack().ljust(INFO_SIZE, b"\0")),
            (area.start, bytes(area.data)),
        ),
        rsdp_paddr=rsdp_paddr,
    )


class _Area:
    """Guest memory that tables are placed in one after the other."""

    def __init__(self, start: int, size: int) -> None:
        self.start = start
        self.data = bytearray(size)
        self._used = 0

    def place(self, table: bytes) -> int:
        """Guest-physical address of the table."""
        begin = -(-self._used // _ALIGN) * _ALIGN
        end = begin + len(table)
        if end > len(self.data):
            raise ValueError(f"ACPI tables need more than {len(self.data)} bytes")
        self.data[begin:end] = table
        self._used = end
        return self.start + begin


def _checksum(data: bytes | bytearray) -> int:
    return -sum(data) & 0xFF


def _summed(table: bytes) -> bytes:
    """The table with its length and checksum filled in."""
    out = bytearray(table)
    at = acpi_header.offsetof("length")
    out[at : at + 4] = acpi_header.pack_field("length", len(out))
    out[acpi_header.offsetof("checksum")] = _checksum(out)
    return bytes(out)


def _rsdp(rsdt: int, xsdt: int) -> bytes:
    out = bytearray(
        acpi_rsdp(rsdt_address=rsdt, xsdt_address=xsdt, length=acpi_rsdp.sizeof()).pack()
    )
    # ACPI 1.0 ends, and sums up, what later became the first part.
    out[acpi_rsdp.offsetof("checksum")] = _checksum(out[: acpi_rsdp.offsetof("length")])
    out[acpi_rsdp.offsetof("extended_checksum")] = _checksum(out)
    return bytes(out)


def _root_table(signature: bytes, entry_size: int, tables: list[int]) -> bytes:
    entries = b"".join(address.to_bytes(entry_size, "little") for address in tables)
    return _summed(acpi_header(signature=signature, revision=1).pack() + entries)


def _fadt_fields(revision: int, facs: int, dsdt: int) -> acpi_10_fadt:
    """What both revisions of the FADT say."""
    return acpi_10_fadt(
        acpi_header(signature=b"FACP", revision=revision),
        firmware_ctrl=facs,
        dsdt=dsdt,
        sci_int=_SCI_INTERRUPT,
        pm1a_evt_blk=_PM1A_EVT_BLK,
        pm1_evt_len=_PM1_EVT_LEN,
        pm1a_cnt_blk=_PM1A_CNT_BLK,
        pm1_cnt_len=_PM1_CNT_LEN,
        gpe0_blk=_GPE0_BLK,
        gpe0_blk_len=_GPE0_BLK_LEN,
        p_lvl2_lat=_NO_C2_C3,
        p_lvl3_lat=_NO_C2_C3,
        flags=FADT_WBINVD
        | FADT_PROC_C1
        | FADT_FIX_RTC
        | FADT_TMR_VAL_EXT
        | FADT_USE_PLATFORM_CLOCK,
    )


def _fadt_10(facs: int, dsdt: int) -> bytes:
    # Only the RSDT leads here. That it names a PM timer which is not there is Xen's own answer.
    fadt = _fadt_fields(1, facs, dsdt)
    fadt.pm_tmr_blk = _PM_TMR_BLK
    fadt.pm_tmr_len = _PM_TMR_LEN
    return _summed(fadt.pack())


def _fadt(facs: int, dsdt: int) -> bytes:
    fields = _fadt_fields(ACPI_REVISION, facs, dsdt)
    fields.flags |= FADT_PWR_BUTTON | FADT_SLP_BUTTON
    fields.iapc_boot_arch = IAPC_NO_VGA | IAPC_NO_CMOS_RTC
    fadt = acpi_fadt(
        fields,
        reset_reg=acpi_gas(SYSTEM_IO, 8, address=_RESET_PORT),
        reset_value=_RESET_VALUE,
        x_firmware_ctrl=facs,
        x_dsdt=dsdt,
        x_pm1a_evt_blk=acpi_gas(SYSTEM_IO, 8 * _PM1_EVT_LEN, address=_PM1A_EVT_BLK),
        x_pm1a_cnt_blk=acpi_gas(SYSTEM_IO, 8 * _PM1_CNT_LEN, address=_PM1A_CNT_BLK),
    )
    return _summed(fadt.pack())


def _lapic(vcpu: int, online: bool) -> acpi_madt_lapic:
    return acpi_madt_lapic(
        acpi_processor_id=vcpu, apic_id=2 * vcpu, flags=LAPIC_ENABLED if online else 0
    )


def _madt(lapics: list[acpi_madt_lapic]) -> bytes:
    madt = acpi_madt(
        acpi_header(signature=b"APIC", revision=2),
        lapic_address=APIC_DEFAULT_PHYS_BASE,
        flags=MADT_PCAT_COMPAT,
    )
    return _summed(madt.pack() + b"".join(lapic.pack() for lapic in lapics))


def _dsdt(lapics: list[acpi_madt_lapic], lapic: bool) -> bytes:
    processors = (_processor(entry, lapic) for entry in lapics)
    header = acpi_header(signature=b"DSDT", revision=ACPI_REVISION)
    return _summed(header.pack() + aml.scope("\\_SB", *processors))


def _processor(entry: acpi_madt_lapic, lapic: bool) -> bytes:
    # No hotplug methods: a guest learns of a vCPU coming or going from xenstore.
    vcpu = entry.acpi_processor_id
    terms = [
        aml.name("_HID", aml.string("ACPI0007")),
        aml.name("_UID", aml.integer(vcpu)),
        aml.name("_STA", aml.integer(STA_PRESENT_ENABLED if entry.flags & LAPIC_ENABLED else 0)),
    ]
    if lapic:
        terms.append(aml.name("_MAT", aml.buffer(entry.pack())))
    return aml.processor(f"PR{vcpu:02X}", vcpu, *terms)
