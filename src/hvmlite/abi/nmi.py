"""nmi_op, and the NMI reasons in shared_info. Source: nmi.h."""

from hvmlite.abi.layout import Struct, ulong

XENNMI_register_callback = 0
XENNMI_unregister_callback = 1

# arch_shared_info.nmi_reason
XEN_NMIREASON_io_error = 1 << 0
XEN_NMIREASON_pci_serr = 1 << 1
XEN_NMIREASON_unknown = 1 << 2


class xennmi_callback(Struct):
    """XENNMI_register_callback."""

    handler_address: ulong = 0
    pad: ulong = 0
