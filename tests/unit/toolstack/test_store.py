"""Proves which nodes a domain without devices has in xenstore, and who may read and write them,
against a listing recorded on real Xen 4.17 with xl.

What the recorded guest wrote itself is left out. Cannot see the order in which xl writes.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hvmlite.toolstack.config import DomainConfig
from hvmlite.toolstack.store import prepare_store, remove_domain, write_domain
from hvmlite.xenstore.server import XenStore

UUID = "185991b5-468a-4484-b983-db89939a1995"

# The recorded listing, without the disk and the network card, and without the guest's own values.
RECORDED = """\
/local = ""   (n0)
/local/domain = ""   (n0)
/local/domain/0 = ""   (n0)
/local/domain/0/control = ""   (n0)
/local/domain/0/control/feature-poweroff = "1"   (n0)
/local/domain/0/control/feature-reboot = "1"   (n0)
/local/domain/0/control/feature-suspend = "1"   (n0)
/local/domain/0/domid = "0"   (n0)
/local/domain/0/name = "Domain-0"   (n0)
/local/domain/0/backend = ""   (n0)
/local/domain/0/backend/console = ""   (n0)
/local/domain/0/backend/console/4 = ""   (n0)
/local/domain/0/backend/console/4/0 = ""   (n0,r4)
/local/domain/0/backend/console/4/0/frontend = "/local/domain/4/console"   (n0,r4)
/local/domain/0/backend/console/4/0/frontend-id = "4"   (n0,r4)
/local/domain/0/backend/console/4/0/online = "1"   (n0,r4)
/local/domain/0/backend/console/4/0/state = "1"   (n0,r4)
/local/domain/0/backend/console/4/0/protocol = "vt100"   (n0,r4)
/local/domain/4 = ""   (n0,r4)
/local/domain/4/vm = "/vm/185991b5-468a-4484-b983-db89939a1995"   (n0,r4)
/local/domain/4/name = "deb"   (n0,r4)
/local/domain/4/cpu = ""   (n0,r4)
/local/domain/4/cpu/0 = ""   (n0,r4)
/local/domain/4/cpu/0/availability = "online"   (n0,r4)
/local/domain/4/memory = ""   (n0,r4)
/local/domain/4/memory/static-max = "262144"   (n0,r4)
/local/domain/4/memory/target = "262144"   (n0,r4)
/local/domain/4/memory/videoram = "0"   (n0,r4)
/local/domain/4/device = ""   (n0,r4)
/local/domain/4/device/suspend = ""   (n0,r4)
/local/domain/4/device/suspend/event-channel = ""   (n4)
/local/domain/4/control = ""   (n0,r4)
/local/domain/4/control/shutdown = ""   (n4)
/local/domain/4/control/feature-poweroff = ""   (n4)
/local/domain/4/control/feature-reboot = ""   (n4)
/local/domain/4/control/feature-suspend = ""   (n4)
/local/domain/4/control/sysrq = ""   (n4)
/local/domain/4/control/platform-feature-multiprocessor-suspend = "1"   (n0,r4)
/local/domain/4/control/platform-feature-xs_reset_watches = "1"   (n0,r4)
/local/domain/4/data = ""   (n4)
/local/domain/4/drivers = ""   (n4)
/local/domain/4/feature = ""   (n4)
/local/domain/4/attr = ""   (n4)
/local/domain/4/error = ""   (n4)
/local/domain/4/domid = "4"   (n0,r4)
/local/domain/4/store = ""   (n0,r4)
/local/domain/4/store/port = "1"   (n0,r4)
/local/domain/4/store/ring-ref = "1044476"   (n0,r4)
/local/domain/4/console = ""   (n0,r4)
/local/domain/4/console/backend = "/local/domain/0/backend/console/4/0"   (n0,r4)
/local/domain/4/console/backend-id = "0"   (n4,r0)
/local/domain/4/console/limit = "1048576"   (n0,r4)
/local/domain/4/console/type = "xenconsoled"   (n0,r4)
/local/domain/4/console/output = "pty"   (n0,r4)
/local/domain/4/console/tty = ""   (n0,r4)
/local/domain/4/console/port = "2"   (n0,r4)
/local/domain/4/console/ring-ref = "1044479"   (n0,r4)
/local/pool = ""   (n0)
/local/pool/0 = ""   (n0)
/local/pool/0/name = "Pool-0"   (n0)
/vm = ""   (n0)
/vm/185991b5-468a-4484-b983-db89939a1995 = ""   (n0,r4)
/vm/185991b5-468a-4484-b983-db89939a1995/name = "deb"   (n0,r4)
/vm/185991b5-468a-4484-b983-db89939a1995/uuid = "185991b5-468a-4484-b983-db89939a1995"   (n0,r4)
/vm/185991b5-468a-4484-b983-db89939a1995/start_time = "TIME"   (n0,r4)
"""


def config(**options: object) -> DomainConfig:
    defaults = {"kernel": Path("vmlinuz"), "name": "deb", "memory": 256 << 20}
    return DomainConfig(**{**defaults, **options})  # type: ignore[arg-type]


@pytest.fixture
def store() -> XenStore:
    made = XenStore()
    prepare_store(made)
    return made


def listing(store: XenStore, base: str = "/") -> list[str]:
    """Every node below `base`, as xenstore-ls -fp shows it, but for what the store itself has."""
    lines = []
    for name in store.list(base):
        path = f"{base.rstrip('/')}/{name}"
        if path == "/tool":
            continue
        value = (store.read(path) or b"").decode()
        if path.endswith("/start_time"):
            assert re.fullmatch(r"\d{10}\.\d\d", value)
            value = "TIME"
        lines.append(f'{path} = "{value}"   ({",".join(map(str, store.get_perms(path)))})')
        lines += listing(store, path)
    return lines


def test_a_domain_is_as_xl_leaves_it(store: XenStore) -> None:
    write_domain(store, config(), 4, UUID, 1, 2)
    assert sorted(listing(store)) == sorted(RECORDED.splitlines())


def test_every_vcpu_has_its_node(store: XenStore) -> None:
    write_domain(store, config(vcpus=2, maxvcpus=4), 4, UUID, 1, 2)
    home = "/local/domain/4/cpu"
    assert sorted(store.list(home)) == ["0", "1", "2", "3"]
    assert [store.read(f"{home}/{i}/availability") for i in range(4)] == [
        b"online",
        b"online",
        b"offline",
        b"offline",
    ]


def test_removing_it_leaves_what_was_there_before(store: XenStore) -> None:
    before = listing(store)
    write_domain(store, config(), 4, UUID, 1, 2)
    write_domain(store, config(name="other"), 5, UUID.replace("1", "2"), 1, 2)
    remove_domain(store, 4, UUID)
    assert not any("domain/4" in line or UUID in line for line in listing(store))
    assert store.read("/local/domain/5/name") == b"other"
    remove_domain(store, 5, UUID.replace("1", "2"))
    after = [line for line in listing(store) if "/backend/console" not in line]
    assert after == before
    remove_domain(store, 4, UUID)


def test_odd_names_are_values_like_any_other(store: XenStore) -> None:
    name = 'a "name"\nwith / everything ü'
    write_domain(store, config(name=name), 4, UUID, 1, 2)
    assert store.read("/local/domain/4/name") == name.encode()
