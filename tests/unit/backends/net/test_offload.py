"""Proves checksums and TCP segments made in software against a model written word by word.

Cannot see whether a real network takes the frames; tests/system sends some through passt.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvmlite.abi.netif import XEN_NETIF_GSO_TYPE_TCPV4, XEN_NETIF_GSO_TYPE_TCPV6
from hvmlite.backends.net.frame import Frame
from hvmlite.backends.net.headers import parse
from hvmlite.backends.net.offload import MOST_SEGMENTS, Offloads, finish, ones_sum

from .packets import checksum, tcp, udp

NOTHING = Offloads()
GSO = {4: XEN_NETIF_GSO_TYPE_TCPV4, 6: XEN_NETIF_GSO_TYPE_TCPV6}


def frame(data: bytes, **what: int) -> Frame:
    return Frame([data], len(data), csum_blank=True, **what)  # type: ignore[arg-type]


@given(st.binary(max_size=300))
def test_sum(data: bytes) -> None:
    assert ~ones_sum(data) & 0xFFFF == checksum(data)


@given(
    st.binary(max_size=200),
    st.sampled_from([4, 6]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 9),
)
def test_checksums(data: bytes, version: int, vlan: bool, use_tcp: bool, padding: int) -> None:
    make = tcp if use_tcp else udp
    blank = make(version, data, vlan=vlan)
    (done,) = finish(frame(blank + bytes(padding)), NOTHING)
    assert done.data() == make(version, data, vlan=vlan, filled=True) + bytes(padding)
    assert not done.csum_blank


@given(
    st.integers(0, 5000), st.integers(100, 1500), st.sampled_from([4, 6]), st.booleans(),
    st.sampled_from([b"", bytes(12)]), st.sampled_from([0x10, 0x18, 0x19, 0x98]),
    st.sampled_from([1000, 0xFFFF_FF00]),
)  # fmt: skip
@settings(max_examples=60)
def test_segments(
    size: int, step: int, version: int, vlan: bool, options: bytes, flags: int, sequence: int
) -> None:
    data = bytes(i * 7 & 0xFF for i in range(size))
    whole = tcp(version, data, sequence=sequence, flags=flags, options=options, vlan=vlan)
    done = finish(frame(whole, gso_type=GSO[version], gso_size=step), NOTHING)
    starts = range(0, max(size, 1), step)
    assert len(done) == len(starts)
    for number, (start, segment) in enumerate(zip(starts, done, strict=True)):
        kept = flags & (0xFF if number == 0 else ~0x80)
        if start + step < size:
            kept &= ~0x09
        expected = bytearray(
            tcp(
                version, data[start : start + step], sequence=sequence + start & 0xFFFF_FFFF,
                flags=kept, options=options, filled=True, vlan=vlan,
            )
        )  # fmt: skip
        if version == 4:
            network = 18 if vlan else 14
            expected[network + 4 : network + 6] = (0x1234 + number).to_bytes(2, "big")
            expected[network + 10 : network + 12] = b"\0\0"
            value = checksum(bytes(expected[network : network + 20]))
            expected[network + 10 : network + 12] = value.to_bytes(2, "big")
        assert segment.data() == expected


def test_what_is_taken_stays() -> None:
    blank = frame(tcp(4, bytes(3000)), gso_type=GSO[4], gso_size=1000)
    assert finish(blank, Offloads(True, True, True, True)) == [blank]
    assert len(finish(blank, Offloads(True, True, False, True))) == 3
    six = frame(udp(6, b"x"))
    assert finish(six, Offloads(csum4=True, csum6=True)) == [six]
    assert finish(six, Offloads(csum4=True))[0].data() == udp(6, b"x", filled=True)
    assert finish(frame(udp(4, b"x")), Offloads(csum4=True))[0].csum_blank


def test_one_page_only() -> None:
    blank = frame(tcp(4, bytes(9000)), gso_type=GSO[4], gso_size=1400)
    ready = Offloads(True, True, True, True, sg=False)
    assert ready.fits(blank)
    assert max(each.size for each in finish(blank, ready)) <= 1454
    assert not ready.fits(Frame([bytes(5000)], 5000))


@pytest.mark.parametrize("data", [b"\0" * 60, udp(4, b"")[:40], tcp(6, b"")[:60]])
def test_what_cannot_be_finished_is_lost(data: bytes) -> None:
    assert finish(frame(data), NOTHING) == []


def test_no_end_of_segments() -> None:
    data = tcp(4, bytes(60000))
    assert finish(frame(data, gso_type=GSO[4], gso_size=1), NOTHING) == []
    assert finish(frame(udp(4, bytes(600)), gso_type=GSO[4], gso_size=100), NOTHING) == []
    least = -(-len(data) // MOST_SEGMENTS)
    assert len(finish(frame(data, gso_type=GSO[4], gso_size=least), NOTHING)) <= MOST_SEGMENTS


@given(st.binary(max_size=120), st.integers(0, 100), st.sampled_from([1, 200, 1400]))
@settings(max_examples=200)
def test_anything_at_all(garbage: bytes, keep: int, step: int) -> None:
    for base in (tcp(4, bytes(50)), udp(6, bytes(50)), tcp(6, bytes(50), vlan=True)):
        data = base[:keep] + garbage
        parse(data)
        for kind in (0, 1, 2):
            for each in finish(frame(data, gso_type=kind, gso_size=step if kind else 0), NOTHING):
                assert each.size == len(each.data()) <= len(data)
