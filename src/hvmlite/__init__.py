"""hvmlite: runs Xen PVH guests anywhere, without Xen, root or hardware virtualization.

`Host`, `DomainConfig` and `Domain` are the toolstack's public face; `Console` and `Outcome` come
with a domain.  Errors meant for the user are `UserError` and `EngineError`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from hvmlite.errors import EngineError, HvmliteError, UserError

if TYPE_CHECKING:
    from hvmlite.toolstack.config import DomainConfig
    from hvmlite.toolstack.console import Console
    from hvmlite.toolstack.domain import Domain, Outcome
    from hvmlite.toolstack.host import Host

__version__ = "0.1.0"
__all__ = [
    "Console",
    "Domain",
    "DomainConfig",
    "EngineError",
    "Host",
    "HvmliteError",
    "Outcome",
    "UserError",
]

_HOMES = {
    "Console": "hvmlite.toolstack.console",
    "Domain": "hvmlite.toolstack.domain",
    "DomainConfig": "hvmlite.toolstack.config",
    "Host": "hvmlite.toolstack.host",
    "Outcome": "hvmlite.toolstack.domain",
}


def __getattr__(name: str) -> object:
    # Loaded on first use: a program that needs only the ABI should not pay for the rest.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
