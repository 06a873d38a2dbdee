"""Requests and responses of the PV network device. Source: io/netif.h."""

from typing import Annotated

from hvmlite.abi.layout import Array, Bytes, Struct, UnionOf, s16, u8, u16, u32

XEN_NETIF_NR_SLOTS_MIN = 18  # slots of one packet that every backend accepts
XEN_NETIF_MAX_TX_SIZE = 0xFFFF

# netif_tx_request.flags
NETTXF_csum_blank = 1 << 0
NETTXF_data_validated = 1 << 1
NETTXF_more_data = 1 << 2
NETTXF_extra_info = 1 << 3

# netif_rx_response.flags
NETRXF_data_validated = 1 << 0
NETRXF_csum_blank = 1 << 1
NETRXF_more_data = 1 << 2
NETRXF_extra_info = 1 << 3
NETRXF_gso_prefix = 1 << 4

XEN_NETIF_EXTRA_TYPE_NONE = 0
XEN_NETIF_EXTRA_TYPE_GSO = 1
XEN_NETIF_EXTRA_TYPE_MCAST_ADD = 2
XEN_NETIF_EXTRA_TYPE_MCAST_DEL = 3
XEN_NETIF_EXTRA_TYPE_HASH = 4
XEN_NETIF_EXTRA_TYPE_MAX = 5
XEN_NETIF_EXTRA_FLAG_MORE = 1 << 0

XEN_NETIF_GSO_TYPE_NONE = 0
XEN_NETIF_GSO_TYPE_TCPV4 = 1
XEN_NETIF_GSO_TYPE_TCPV6 = 2

NETIF_RSP_DROPPED = -2
NETIF_RSP_ERROR = -1
NETIF_RSP_OKAY = 0
NETIF_RSP_NULL = 1  # a slot without an answer of its own

XEN_NETIF_CTRL_HASH_TYPE_IPV4 = 1 << 0
XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP = 1 << 1
XEN_NETIF_CTRL_HASH_TYPE_IPV6 = 1 << 2
XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP = 1 << 3
XEN_NETIF_CTRL_HASH_ALGORITHM_NONE = 0
XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ = 1

XEN_NETIF_CTRL_TYPE_INVALID = 0
XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS = 1
XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS = 2
XEN_NETIF_CTRL_TYPE_SET_HASH_KEY = 3
XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE = 4
XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE = 5
XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING = 6
XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM = 7
XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE = 8
XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING = 9
XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING = 10

XEN_NETIF_CTRL_STATUS_SUCCESS = 0
XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED = 1
XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER = 2
XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW = 3

XEN_NETIF_CTRLF_GREF_readonly = 1 << 0


class netif_tx_request(Struct):
    """One slot of a packet from the guest; size of the first slot is the packet's (bytes)."""

    gref: u32 = 0
    offset: u16 = 0
    flags: u16 = 0  # NETTXF_*
    id: u16 = 0
    size: u16 = 0


class netif_extra_gso(Struct):
    """netif_extra_info.u for XEN_NETIF_EXTRA_TYPE_GSO; size in bytes."""

    size: u16 = 0
    type: u8 = 0  # XEN_NETIF_GSO_TYPE_*
    pad: u8 = 0
    features: u16 = 0


class netif_extra_mcast(Struct):
    """netif_extra_info.u for XEN_NETIF_EXTRA_TYPE_MCAST_{ADD,DEL}."""

    addr: Annotated[bytes, Bytes(6)] = b""


class netif_extra_hash(Struct):
    """netif_extra_info.u for XEN_NETIF_EXTRA_TYPE_HASH."""

    type: u8 = 0  # a bit number of XEN_NETIF_CTRL_HASH_TYPE_*
    algorithm: u8 = 0
    value: Annotated[bytes, Bytes(4)] = b""


class netif_extra_info(Struct):
    """A slot after the first of a packet, in either direction."""

    type: u8 = 0  # XEN_NETIF_EXTRA_TYPE_*
    flags: u8 = 0  # XEN_NETIF_EXTRA_FLAG_MORE
    u: Annotated[
        bytes, UnionOf(netif_extra_gso, netif_extra_mcast, netif_extra_hash, Array(u16, 3))
    ] = b""


class netif_tx_response(Struct):
    """The answer to a netif_tx_request."""

    id: u16 = 0
    status: s16 = 0  # NETIF_RSP_*


class netif_rx_request(Struct):
    """A frame for the backend to fill."""

    id: u16 = 0
    pad: u16 = 0
    gref: u32 = 0


class netif_rx_response(Struct):
    """One slot of a packet to the guest; offset in bytes."""

    id: u16 = 0
    offset: u16 = 0
    flags: u16 = 0  # NETRXF_*
    status: s16 = 0  # bytes, or NETIF_RSP_*


class xen_netif_ctrl_request(Struct):
    """A message on the control ring."""

    id: u16 = 0
    type: u16 = 0  # XEN_NETIF_CTRL_TYPE_*
    data: Annotated[tuple[int, ...], Array(u32, 3)] = ()


class xen_netif_ctrl_response(Struct):
    """The answer on the control ring."""

    id: u16 = 0
    type: u16 = 0
    status: u32 = 0  # XEN_NETIF_CTRL_STATUS_*
    data: u32 = 0


class xen_netif_gref(Struct):
    """One entry of a list of grants to keep mapped."""

    ref: u32 = 0
    flags: u16 = 0  # XEN_NETIF_CTRLF_GREF_readonly
    status: u16 = 0
