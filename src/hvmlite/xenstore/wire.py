"""The layouts of hvmlite.abi.xs_wire in the form that the byte-level modules need them."""

from __future__ import annotations

from typing import Final

from hvmlite.abi.layout import Abi
from hvmlite.abi.xs_wire import xenstore_domain_interface, xsd_sockmsg

HEADER: Final = xsd_sockmsg.layout(Abi.X86_64).codec
"""type, req_id, tx_id, len."""
HEADER_SIZE: Final = xsd_sockmsg.sizeof()

XENSTORE_SERVER_FEATURE_WATCHDEPTH: Final = 4
"""WATCH takes a depth (from 4.22 on)."""


def _word(name: str) -> int:
    return xenstore_domain_interface.offsetof(name) // 4


class Interface:
    """struct xenstore_domain_interface: byte offsets of the rings, word offsets of the rest."""

    req: Final = xenstore_domain_interface.offsetof("req")
    rsp: Final = xenstore_domain_interface.offsetof("rsp")
    req_cons: Final = _word("req_cons")
    req_prod: Final = _word("req_prod")
    rsp_cons: Final = _word("rsp_cons")
    rsp_prod: Final = _word("rsp_prod")
    server_features: Final = _word("server_features")
    connection: Final = _word("connection")
    error: Final = _word("error")
