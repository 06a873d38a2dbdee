"""States of a PV device's two ends, and xenstore's names for its ABI.

Source: io/xenbus.h, io/protocols.h.
"""

import enum

XEN_IO_PROTO_ABI_X86_32 = "x86_32-abi"
XEN_IO_PROTO_ABI_X86_64 = "x86_64-abi"


class XenbusState(enum.IntEnum):
    """The `state` node of a frontend or a backend."""

    XenbusStateUnknown = 0
    XenbusStateInitialising = 1
    XenbusStateInitWait = 2
    XenbusStateInitialised = 3
    XenbusStateConnected = 4
    XenbusStateClosing = 5
    XenbusStateClosed = 6
    XenbusStateReconfiguring = 7
    XenbusStateReconfigured = 8
