"""What the toolstack writes into xenstore for a domain, as xl does.

Facts: docs/misc/xenstore-paths.pandoc; a listing recorded from real Xen 4.17 with xl.
"""

from __future__ import annotations

import time

from hvmlite.toolstack.config import DomainConfig
from hvmlite.toolstack.layout import SpecialPage
from hvmlite.xenstore.server import XenStore

CONSOLE_LIMIT = 1 << 20


def prepare_store(store: XenStore) -> None:
    """The nodes of domain 0 and of the machine."""
    for path, value in (
        ("/local/domain/0/control/feature-poweroff", "1"),
        ("/local/domain/0/control/feature-reboot", "1"),
        ("/local/domain/0/control/feature-suspend", "1"),
        ("/local/domain/0/domid", "0"),
        ("/local/domain/0/name", "Domain-0"),
        ("/local/pool/0/name", "Pool-0"),
    ):
        store.write(path, value)
    store.mkdir("/local/domain/0/backend")
    store.mkdir("/vm")


def write_domain(
    store: XenStore, config: DomainConfig, domid: int, uuid: str, store_port: int, console_port: int
) -> None:
    """The nodes of a new domain, before it is introduced."""
    home = f"/local/domain/{domid}"
    ours = ["n0", f"r{domid}"]
    theirs = [f"n{domid}"]
    pages = str(config.memory >> 10)
    vm = f"/vm/{uuid}"
    console_backend = f"/local/domain/0/backend/console/{domid}/0"

    def tell(base: str, nodes: dict[str, str | None], perms: list[str]) -> None:
        for name, value in nodes.items():
            path = f"{base}/{name}" if name else base
            store.write(path, value or "", perms)

    tell(home, {"": None, "vm": vm, "name": config.title, "cpu": None}, ours)
    for vcpu in range(config.all_vcpus):
        availability = "online" if vcpu < config.vcpus else "offline"
        tell(home, {f"cpu/{vcpu}": None, f"cpu/{vcpu}/availability": availability}, ours)
    tell(
        home,
        {
            "memory": None,
            "memory/static-max": pages,
            "memory/target": pages,
            "memory/videoram": "0",
            "device": None,
            "device/suspend": None,
        },
        ours,
    )
    tell(home, {"device/suspend/event-channel": None}, theirs)
    tell(home, {"control": None}, ours)
    tell(
        home,
        {
            "control/shutdown": None,
            "control/feature-poweroff": None,
            "control/feature-reboot": None,
            "control/feature-suspend": None,
            "control/sysrq": None,
        },
        theirs,
    )
    tell(
        home,
        {
            "control/platform-feature-multiprocessor-suspend": "1",
            "control/platform-feature-xs_reset_watches": "1",
        },
        ours,
    )
    tell(home, dict.fromkeys(("data", "drivers", "feature", "attr", "error")), theirs)
    tell(
        home,
        {
            "domid": str(domid),
            "store": None,
            "store/port": str(store_port),
            "store/ring-ref": str(int(SpecialPage.XENSTORE)),
            "console": None,
            "console/backend": console_backend,
        },
        ours,
    )
    tell(home, {"console/backend-id": "0"}, [f"n{domid}", "r0"])
    tell(
        home,
        {
            "console/limit": str(CONSOLE_LIMIT),
            "console/type": "xenconsoled",
            "console/output": "pty",
            "console/tty": None,
            "console/port": str(console_port),
            "console/ring-ref": str(int(SpecialPage.CONSOLE)),
        },
        ours,
    )
    store.mkdir("/local/domain/0/backend/console")
    store.mkdir(f"/local/domain/0/backend/console/{domid}")
    tell(
        console_backend,
        {
            "": None,
            "frontend": f"{home}/console",
            "frontend-id": str(domid),
            "online": "1",
            "state": "1",
            "protocol": "vt100",
        },
        ours,
    )
    tell(
        vm,
        {
            "": None,
            "name": config.title,
            "uuid": uuid,
            "start_time": f"{time.time():.2f}",
        },
        ours,
    )


def remove_domain(store: XenStore, domid: int, uuid: str) -> None:
    """Takes a domain's nodes out again."""
    for path in (
        f"/local/domain/{domid}",
        f"/vm/{uuid}",
        f"/local/domain/0/backend/console/{domid}",
    ):
        if store.exists(path):
            store.rm(path)
