"""physdev_op: what a hardware domain tells Xen about interrupts and PCI. Source: physdev.h."""

from typing import Annotated

from hvmlite.abi.layout import Struct, UnionOf, handle, s32, u8, u16, u32, u64, ulong, xen_pfn

PHYSDEVOP_IRQ_UNMASK_NOTIFY = 4
PHYSDEVOP_irq_status_query = 5
PHYSDEVOP_set_iopl = 6
PHYSDEVOP_set_iobitmap = 7
PHYSDEVOP_apic_read = 8
PHYSDEVOP_apic_write = 9
PHYSDEVOP_alloc_irq_vector = 10
PHYSDEVOP_free_irq_vector = 11
PHYSDEVOP_eoi = 12
PHYSDEVOP_map_pirq = 13
PHYSDEVOP_unmap_pirq = 14
PHYSDEVOP_manage_pci_add = 15
PHYSDEVOP_manage_pci_remove = 16
PHYSDEVOP_pirq_eoi_gmfn_v1 = 17
PHYSDEVOP_restore_msi = 19
PHYSDEVOP_manage_pci_add_ext = 20
PHYSDEVOP_setup_gsi = 21
PHYSDEVOP_get_free_pirq = 23
PHYSDEVOP_pci_mmcfg_reserved = 24
PHYSDEVOP_pci_device_add = 25
PHYSDEVOP_pci_device_remove = 26
PHYSDEVOP_restore_msi_ext = 27
PHYSDEVOP_pirq_eoi_gmfn_v2 = 28
PHYSDEVOP_dbgp_op = 29
PHYSDEVOP_prepare_msix = 30
PHYSDEVOP_release_msix = 31
PHYSDEVOP_pci_device_reset = 32  # 4.20

XENIRQSTAT_needs_eoi = 1 << 0
XENIRQSTAT_shared = 1 << 1

MAP_PIRQ_TYPE_MSI = 0
MAP_PIRQ_TYPE_GSI = 1
MAP_PIRQ_TYPE_UNKNOWN = 2
MAP_PIRQ_TYPE_MSI_SEG = 3
MAP_PIRQ_TYPE_MULTI_MSI = 4

XEN_PCI_MMCFG_RESERVED = 1

XEN_PCI_DEV_EXTFN = 1
XEN_PCI_DEV_VIRTFN = 2
XEN_PCI_DEV_PXM = 4

PHYSDEVOP_DBGP_RESET_PREPARE = 1
PHYSDEVOP_DBGP_RESET_DONE = 2
PHYSDEVOP_DBGP_BUS_UNKNOWN = 0
PHYSDEVOP_DBGP_BUS_PCI = 1

# pci_device_reset.flags (4.20)
PCI_DEVICE_RESET_COLD = 0
PCI_DEVICE_RESET_WARM = 1
PCI_DEVICE_RESET_HOT = 2
PCI_DEVICE_RESET_FLR = 3
PCI_DEVICE_RESET_MASK = 3


class physdev_eoi(Struct):
    """PHYSDEVOP_eoi: in irq."""

    irq: u32 = 0


class physdev_pirq_eoi_gmfn(Struct):
    """PHYSDEVOP_pirq_eoi_gmfn_v{1,2}: in gmfn (frame)."""

    gmfn: xen_pfn = 0


class physdev_irq_status_query(Struct):
    """PHYSDEVOP_irq_status_query: in irq; out flags (XENIRQSTAT_*)."""

    irq: u32 = 0
    flags: u32 = 0


class physdev_set_iopl(Struct):
    """PHYSDEVOP_set_iopl: in iopl (PV)."""

    iopl: u32 = 0


class physdev_set_iobitmap(Struct):
    """PHYSDEVOP_set_iobitmap: in bitmap, nr_ports (PV)."""

    bitmap: handle = 0
    nr_ports: u32 = 0


class physdev_apic(Struct):
    """PHYSDEVOP_apic_{read,write}: in apic_physbase, reg; value."""

    apic_physbase: ulong = 0
    reg: u32 = 0
    value: u32 = 0


class physdev_irq(Struct):
    """PHYSDEVOP_{alloc,free}_irq_vector: in irq; vector."""

    irq: u32 = 0
    vector: u32 = 0


class physdev_map_pirq(Struct):
    """PHYSDEVOP_map_pirq: in all; out pirq, and entry_nr for MAP_PIRQ_TYPE_MULTI_MSI."""

    domid: u16 = 0
    type: s32 = 0  # MAP_PIRQ_TYPE_*
    index: s32 = 0
    pirq: s32 = 0
    bus: s32 = 0  # segment in the high 16 bits
    devfn: s32 = 0
    entry_nr: s32 = 0
    table_base: u64 = 0


class physdev_unmap_pirq(Struct):
    """PHYSDEVOP_unmap_pirq: in domid, pirq."""

    domid: u16 = 0
    pirq: s32 = 0


class physdev_manage_pci(Struct):
    """PHYSDEVOP_manage_pci_{add,remove}: in bus, devfn."""

    bus: u8 = 0
    devfn: u8 = 0


class physdev_restore_msi(Struct):
    """PHYSDEVOP_restore_msi: in bus, devfn."""

    bus: u8 = 0
    devfn: u8 = 0


class physdev_pci_physfn(Struct):
    """physfn of the next structs: the physical function of a virtual one."""

    bus: u8 = 0
    devfn: u8 = 0


class physdev_manage_pci_ext(Struct):
    """PHYSDEVOP_manage_pci_add_ext."""

    bus: u8 = 0
    devfn: u8 = 0
    is_extfn: u32 = 0
    is_virtfn: u32 = 0
    physfn: physdev_pci_physfn = physdev_pci_physfn()


class physdev_op(Struct):
    """Argument of __HYPERVISOR_physdev_op_compat: in cmd; the operation's struct in `u`."""

    cmd: u32 = 0
    u: Annotated[
        bytes,
        UnionOf(
            physdev_irq_status_query,
            physdev_set_iopl,
            physdev_set_iobitmap,
            physdev_apic,
            physdev_irq,
        ),
    ] = b""


class physdev_setup_gsi(Struct):
    """PHYSDEVOP_setup_gsi: in gsi, triggering (1 level), polarity (1 low)."""

    gsi: s32 = 0
    triggering: u8 = 0
    polarity: u8 = 0


class physdev_get_free_pirq(Struct):
    """PHYSDEVOP_get_free_pirq: in type (MAP_PIRQ_TYPE_*); out pirq."""

    type: s32 = 0
    pirq: u32 = 0


class physdev_pci_mmcfg_reserved(Struct):
    """PHYSDEVOP_pci_mmcfg_reserved: in address (bytes), segment, bus range, flags."""

    address: u64 = 0
    segment: u16 = 0
    start_bus: u8 = 0
    end_bus: u8 = 0
    flags: u32 = 0  # XEN_PCI_MMCFG_RESERVED


class physdev_pci_device_add(Struct):
    """PHYSDEVOP_pci_device_add; with XEN_PCI_DEV_PXM a u32 proximity domain follows."""

    seg: u16 = 0
    bus: u8 = 0
    devfn: u8 = 0
    flags: u32 = 0  # XEN_PCI_DEV_*
    physfn: physdev_pci_physfn = physdev_pci_physfn()


class physdev_pci_device(Struct):
    """PHYSDEVOP_pci_device_remove, restore_msi_ext, prepare_msix, release_msix."""

    seg: u16 = 0
    bus: u8 = 0
    devfn: u8 = 0


class pci_device_reset(Struct):
    """PHYSDEVOP_pci_device_reset (4.20): in dev, flags (PCI_DEVICE_RESET_*)."""

    dev: physdev_pci_device = physdev_pci_device()
    flags: u32 = 0


class physdev_dbgp_op(Struct):
    """PHYSDEVOP_dbgp_op: in op, bus (PHYSDEVOP_DBGP_*), the EHCI debug port's device."""

    op: u8 = 0
    bus: u8 = 0
    u: physdev_pci_device = physdev_pci_device()
