"""Proves what `--vif` understands, what it refuses in one line, and the nodes that come of it.

Cannot see what is behind an interface; tests/unit/backends/net has that.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvmlite.errors import UserError
from hvmlite.toolstack.devices.spec import parse_device
from hvmlite.toolstack.devices.vif import VifSpec, parse, parse_rate
from hvmlite.toolstack.host import Host

from ..conftest import Make


def test_all_of_xl() -> None:
    spec = parse(
        "mac=00:16:3E:01:02:03, bridge=br0,gatewaydev=eth0,type=vif,script=/x/vif-bridge,"
        "ip=10.0.0.2/24,model=e1000,vifname=tap7,backend=0,rate=10Mb/s@20ms,mtu=1400,devid=3,"
        "trusted=0"
    )
    assert (spec.type, spec.bridge, spec.devid, spec.trusted) == ("bridge", "br0", 3, False)
    spec.mac = spec.mac.lower()
    assert spec.frontend_nodes(3) == {
        "handle": "3", "mac": "00:16:3e:01:02:03", "trusted": "0", "mtu": "1400",
    }  # fmt: skip
    assert spec.backend_nodes(3) == {
        "script": "/x/vif-bridge", "mac": "00:16:3e:01:02:03", "bridge": "br0", "handle": "3",
        "type": "vif", "hotplug-status": "connected", "ip": "10.0.0.2/24", "gatewaydev": "eth0",
        "vifname": "tap7", "rate": "25000,20000", "mtu": "1400",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("", "user", "user network"),
        ("type=ioemu", "user", "user network"),
        ("type=user,forward=tcp:127.0.0.1:2222-22,forward=udp:53-5353", "user",
         "user network, , tcp port 2222 to its 22, udp port 53 to its 5353"),
        ("type=tap", "tap", "tap"),
        ("type=bridge", "bridge", "bridge xenbr0"),
        ("path=/run/x", "socket", "socket /run/x"),
        ("link=a", "domain", "link a"),
        ("type=domain,peer=other", "domain", "domain other"),
    ],
)  # fmt: skip
def test_types(text: str, kind: str, said: str) -> None:
    spec = parse_device("vif", text)
    assert isinstance(spec, VifSpec)
    assert spec.type == kind
    assert said in spec.describe()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mac", "expected key=value, got 'mac'"),
        ("colour=red", "no key 'colour'"),
        ("mac=1,mac=2", "mac= is given twice"),
        ("mac=00:16:3e:01:02", "no address of an interface"),
        ("mac=01:16:3e:01:02:03", "no address of an interface"),
        ("type=magic", "none of user, tap"),
        ("mtu=9", "not between"),
        ("mtu=70000", "not between"),
        ("mtu=x", "no number"),
        ("devid=99999999999", "no number"),
        ("trusted=yes", "neither 0 nor 1"),
        ("rate=fast", "not like 10Mb/s"),
        ("rate=1b/s@1us", "is nothing"),
        ("backend=driver", "only domain 0"),
        ("queues=9", "queues=9"),
        ("bridge=a/b", "no name of an interface"),
        ("vifname=abcdefghijklmnop", "no name of an interface"),
        ("type=socket", "needs path="),
        ("type=domain", "needs link or peer="),
        ("type=user,path=/x", "path= does not belong"),
        ("type=tap,link=x", "does not belong"),
        ("type=tap,forward=tcp:1-2", "forward= does not belong"),
        ("type=user,script=/x", "script= does not belong"),
        ("link=a,peer=b", "two names"),
        ("forward=2222-22", "not like"),
        ("forward=tcp:0-22", "between 1 and 65535"),
        ("forward=tcp:1-99999", "between 1 and 65535"),
    ],
)
def test_refusals(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "size", "nanoseconds"),
    [
        ("10Mb/s", 62500, 50_000_000),
        ("250KB/s", 12500, 50_000_000),
        ("1MB/s@20ms", 20000, 20_000_000),
        ("1GB/s@1s", 1_000_000_000, 1_000_000_000),
    ],
)
def test_rates(text: str, size: int, nanoseconds: int) -> None:
    assert parse_rate(text) == (size, nanoseconds)


@given(st.text(max_size=60))
def test_any_text(text: str) -> None:
    try:
        parse(text)
    except UserError as error:
        assert "\n" not in str(error) or "\n" in text


def test_addresses_are_made_up(host: Host, make: Make) -> None:
    specs = [VifSpec(link="x") for _ in range(4)]
    one, two = make(name="a"), make(name="a")
    for domain in (one, two):
        for _ in range(2):
            domain.attach(specs.pop())
    macs = [spec.mac for domain in (one, two) for spec in domain.config.devices]  # type: ignore[attr-defined]
    assert len(set(macs)) == 4
    assert all(mac.startswith("00:16:3e:") for mac in macs)
    one.destroy()
    two.destroy()
    again = make(name="a")
    again.attach(VifSpec(link="x"))
    assert again.config.devices[0].mac == macs[0]  # type: ignore[attr-defined]


def test_a_link_that_is_made_anew_is_empty(host: Host, make: Make) -> None:
    for _ in range(3):
        domain = make()
        domain.attach(VifSpec(link="y"))
        assert domain.detach("vif", 0)
        domain.destroy()
