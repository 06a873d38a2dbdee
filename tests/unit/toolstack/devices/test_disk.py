"""Proves xl's disk syntax: each example of xl-disk-configuration(5), each key and flag, what is
refused and how, and the device numbers of xen-vbd-interface(7).

Cannot see xl itself; the expected values are from these two manual pages.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvmlite.errors import UserError
from hvmlite.toolstack.devices.disk import DiskSpec, parse
from hvmlite.toolstack.devices.spec import parse_device
from hvmlite.toolstack.devices.vdev import device_number


@pytest.mark.parametrize(
    "text",
    [
        "/dev/vg/guest-volume,,hda",
        "/dev/vg/guest-volume,raw,hda,rw",
        "format=raw, vdev=hda, access=rw, target=/dev/vg/guest-volume",
        "raw:/dev/vg/guest-volume,hda,w",
        "phy:/dev/vg/guest-volume,hda,w",
        "file:/dev/vg/guest-volume,hda,",
        "tap:aio:/dev/vg/guest-volume,hda,rw",
        "tap2:raw:/dev/vg/guest-volume,hda",
        " vdev=hda,,raw,target=/dev/vg/guest-volume",
        "/dev/vg/guest-volume,raw,vdev=hda,backendtype=phy,script=,direct-io-safe,discard",
        "/dev/vg/guest-volume,,0x300",
        "/dev/vg/guest-volume,,768,backend=0,specification=xen,grant_usage=0,no-colo",
        "devtype=disk,/dev/vg/guest-volume,,0x300",
    ],
)
def test_ways_to_say_one_thing(text: str) -> None:
    spec = parse(text)
    assert (spec.target, spec.format, spec.devid) == ("/dev/vg/guest-volume", "raw", 768)
    assert not spec.readonly
    assert not spec.cdrom


@pytest.mark.parametrize(
    "text",
    [
        "/root/image.iso,,hdc,cdrom",
        "/root/image.iso,,hdc,,cdrom",
        "/root/image.iso,raw,hdc,devtype=cdrom",
        "format=raw, vdev=hdc, access=ro, devtype=cdrom, target=/root/image.iso",
        "raw:/root/image.iso,hdc:cdrom,ro",
    ],
)
def test_cdroms(text: str) -> None:
    spec = parse(text)
    assert (spec.target, spec.devid) == ("/root/image.iso", 5632)
    assert spec.readonly
    assert spec.cdrom
    assert spec.describe() == "disk hdc: /root/image.iso (CD-ROM)"


def test_the_target_takes_the_rest() -> None:
    assert parse("vdev=xvda,target=/a,b,ro:c=d ").target == "/a,b,ro:c=d "
    assert parse(",,xvda,target=/a").target == "/a"
    assert parse("vdev=xvda,target=nbd://host/x,y").remote


def test_flags() -> None:
    spec = parse("a.qcow2,qcow2,xvdb,ro,no-discard,untrusted,snapshot,persistent")
    assert spec == DiskSpec(
        "a.qcow2", "xvdb", "qcow2", readonly=True, discard=False, trusted=False, snapshot=True,
        persistent=True,
        devid=51728,
    )  # fmt: skip
    assert spec.describe() == "disk xvdb: a.qcow2 (qcow2, read-only, changes thrown away)"
    assert parse("a,,xvda,snapshot=0,access=").snapshot is False
    assert parse_device("disk", "a,vhd,xvda").describe() == "disk xvda: a (vhd)"


def test_addresses() -> None:
    for address in ("nbd://host:10809/x", "https://host/x.img", "nbd+unix:///x?socket=/y"):
        spec = parse(f"vdev=xvda,target={address}")
        assert spec.target == address
        assert spec.remote
        assert spec.backend_nodes(spec.devid)["type"] == "qdisk"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no vdev"),
        ("/a", "no vdev"),
        ("/a,raw", "no vdev"),
        (",hdc:cdrom,r", "without a medium"),
        (",,xvda", "without a medium"),
        ("/a,raw,xvda,rw,x", "too many words"),
        ("/a,xvda", "unknown format|no vdev"),
        ("/a,raid,xvda", "unknown format 'raid'"),
        ("/a,raw,xvda,rwx", "unknown access 'rwx'"),
        ("/a,raw,xvda,devtype=floppy", "unknown devtype"),
        ("/a,raw,xvda,colour=red", "unknown key 'colour'"),
        ("/a,raw,xvda,vdev=xvdb", "vdev is given twice"),
        ("/a,raw,xvda,format=qcow2", "format is given twice"),
        ("/a,raw,xvda,target=/b", "target is given twice"),
        ("/a,raw,xvda,backend=storage", "no driver domain"),
        ("/a,raw,xvda,backendtype=standalone", "backendtype=standalone is not supported"),
        ("/a,raw,xvda,specification=virtio", "specification=virtio is not supported"),
        ("/a,raw,xvda,script=block-drbd", "scripts are not run"),
        ("drbd:x,xvda,w", "scripts are not run"),
        ("foo:/a,xvda,w", "unknown prefix foo:"),
        ("/a,raw,xvda,colo", "colo"),
        ("/a,raw,xvda,colo-host=h", "colo"),
        ("/a,raw,xvda,grant_usage=2", "grant_usage"),
        ("/a,raw,xvda,snapshot=maybe", "snapshot"),
        ("/a\0b,raw,xvda", "zero byte"),
    ],
)
def test_what_is_refused(text: str, why: str) -> None:
    with pytest.raises(UserError, match=why) as error:
        parse(text)
    assert "\n" not in str(error.value)


@given(st.text(max_size=60))
def test_any_text(text: str) -> None:
    try:
        spec = parse(text)
    except UserError:
        return
    assert spec.target
    assert spec.devid >= 0
    spec.describe()


@given(
    st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1),
    st.sampled_from(["raw", "qcow2", "vhd", "vmdk"]),
    st.booleans(),
)
def test_keys_say_it_again(target: str, form: str, readonly: bool) -> None:
    target = target.rstrip(",")
    if target:
        access = "r" if readonly else "w"
        spec = parse(f"access={access},format={form},vdev=xvdz,target={target}")
        assert (spec.target, spec.format, spec.readonly) == (target, form, readonly)


@pytest.mark.parametrize(
    ("vdev", "number"),
    [
        ("xvda", 202 << 8),
        ("xvda1", 202 << 8 | 1),
        ("xvdp15", 202 << 8 | 15 << 4 | 15),
        ("xvdq", 1 << 28 | 16 << 8),
        ("xvda16", 1 << 28 | 16),
        ("xvdtq37", 1 << 28 | 536 << 8 | 37),
        ("xvdzz", 1 << 28 | 701 << 8),
        ("d0", 202 << 8),
        ("d0p0", 202 << 8),
        ("d1p2", 202 << 8 | 1 << 4 | 2),
        ("d536p37", 1 << 28 | 536 << 8 | 37),
        ("sdb3", 8 << 8 | 1 << 4 | 3),
        ("hda", 3 << 8),
        ("hdb5", 3 << 8 | 64 | 5),
        ("hdc2", 22 << 8 | 2),
        ("hdd63", 22 << 8 | 64 | 63),
        ("51712", 51712),
        ("0xca00", 51712),
        ("0145000", 51712),
        ("0", 0),
    ],
)
def test_device_numbers(vdev: str, number: int) -> None:
    assert device_number(vdev) == number


@pytest.mark.parametrize(
    "vdev",
    ["", "xvd", "vda", "sdq", "sda16", "hde", "hda64", "xvda256", "xvda01", "d1048576", "d0p256",
     "0xzz", "089", "536870912", "xvdA", "xvda ", "-1", "xvdzzzzz9"],
)  # fmt: skip
def test_no_device_numbers(vdev: str) -> None:
    with pytest.raises(UserError, match="no virtual device"):
        device_number(vdev)
