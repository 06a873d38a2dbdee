"""Code that the host rewrites while a guest runs it: the old code never runs again.

Proves it for a thousand rewrites a lane, of a guest that waits between them and of one that never
stops calling the page, on one vCPU and on two, in 64- and 32-bit mode. Cannot see code that the
guest itself rewrites (tests/guest/selfmod.c), nor pages that change places in the physmap.
"""

from __future__ import annotations

import random
import re
import struct
import time
from pathlib import Path

import pytest

from ..guest.build import GuestToolsMissingError, build_guest
from .conftest import Boot
from .guests import Guest

REWRITES = 1000
PAGE = 4096
MAGIC = 0x51A1EC0D
MODE, STOP, LANES, LANE_SIZE = 0x04, 0x08, 0x40, 0x40
WAIT, HAMMER = 0, 1
NO_TRAP = 0xFFFF_FFFF


def code(number: int, target: int) -> bytes:
    """The page's code: its number in EBX, a jump, its number in another form in ECX, return."""
    head = b"\xbb" + struct.pack("<I", number) + b"\xe9" + struct.pack("<i", target - 10)
    tail = b"\xb9" + struct.pack("<I", number ^ 0x5A5A) + b"\xc3"
    return head + b"\xcc" * (target - len(head)) + tail


class StaleCode:
    """The guest of tests/guest/stalecode.c and what the host does to it."""

    def __init__(self, guest: Guest, lane: int) -> None:
        self.guest = guest
        found = guest.console.expect(
            r"stalecode: control=0x([0-9a-f]+) code_page=0x([0-9a-f]+) vcpus=(\d+)\r?\n"
        )
        self.control, self.page, self.vcpus = int(found[1], 16), int(found[2], 16), int(found[3])
        self.lane = self.control + LANES + LANE_SIZE * lane
        deadline = time.monotonic() + 10
        while self.words(self.control, 1) != (MAGIC,):
            assert time.monotonic() < deadline
        self.request = 0
        self.stale: list[tuple[int, str]] = []

    def words(self, address: int, count: int) -> tuple[int, ...]:
        return struct.unpack(f"<{count}I", self.guest.read(address, 4 * count))

    def store(self, address: int, *words: int) -> None:
        self.guest.write(address, struct.pack(f"<{len(words)}I", *words))

    def write(self, address: int, data: bytes) -> None:
        self.guest.write(address, data)

    def write_both(self, *writes: tuple[int, bytes]) -> None:
        """Several writes at once, as close together as can be."""

        def in_the_host() -> None:
            for address, data in writes:
                self.guest.domain.incarnation.domain.memory.write(address, data)

        self.guest.call(in_the_host)

    def check(self, number: int, how: str) -> None:
        """Has the guest run the page; what ran must be what was written last."""
        self.request += 1
        self.store(self.lane, self.request)
        deadline = time.monotonic() + 10
        while True:
            request, done, ebx, ecx, trap, _calls, _torn = self.words(self.lane, 7)
            if done == request:
                break
            assert time.monotonic() < deadline, "the guest does not answer"
        if (ebx, ecx, trap) != (number, number ^ 0x5A5A, NO_TRAP):
            self.stale.append((number, f"{how}: ebx={ebx:#x} ecx={ecx:#x} trap={trap:#x}"))

    def rewrite(self, times: int) -> None:
        """Rewrites the page in whole and in part, at changing places."""
        choice = random.Random(times)
        number, target = 0, 0
        for _ in range(times):
            number = choice.getrandbits(31)
            how = choice.choice(("whole", "code", "numbers")) if target else "whole"
            if how == "numbers":
                # Two small writes into code that was translated already.
                self.guest.write(self.page + 1, struct.pack("<I", number))
                self.guest.write(self.page + target + 1, struct.pack("<I", number ^ 0x5A5A))
            else:
                target = choice.choice((10, 64, 1000, 2048, PAGE - 6))
                data = code(number, target)
                if how == "whole":
                    data = data.ljust(PAGE, b"\xcc")
                self.guest.write(self.page, data)
            self.check(number, how)

    def finish(self) -> None:
        assert self.stale == []
        self.store(self.control + STOP, 1)
        outcome = self.guest.domain.wait(20)
        assert outcome is not None
        assert outcome.reason == "poweroff"
        assert b"Test result: SUCCESS" in self.guest.console.output


def _build(variant: str) -> Path:
    try:
        return build_guest("stalecode", variant)
    except GuestToolsMissingError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("variant", ["hvm64", "hvm32pae"])
@pytest.mark.parametrize("mode", [WAIT, HAMMER], ids=["wait", "hammer"])
def test_one_vcpu(uvm: Boot, variant: str, mode: int) -> None:
    guest = StaleCode(uvm(_build(variant), memory=64 << 20), lane=0)
    assert guest.vcpus == 1
    guest.store(guest.control + MODE, mode)
    guest.rewrite(REWRITES)
    guest.finish()


@pytest.mark.parametrize("lane", [0, 1])
def test_two_vcpus(uvm: Boot, lane: int) -> None:
    """Both run the page without pause while it is rewritten; lane 1 is the second vCPU."""
    guest = StaleCode(uvm(_build("hvm64"), memory=64 << 20, vcpus=2), lane)
    assert guest.vcpus == 2
    guest.store(guest.control + MODE, HAMMER)
    guest.rewrite(REWRITES)
    guest.finish()


@pytest.mark.parametrize("vcpus", [1, 2])
def test_rewrite_while_it_is_translated(uvm: Boot, vcpus: int) -> None:
    """The page is one long block, so that a writer mostly meets an engine that translates it.

    The first write makes the engine translate it anew, the second changes what it has read first.
    """
    guest = StaleCode(uvm(_build("hvm64"), memory=64 << 20, vcpus=vcpus), lane=0)
    filling = b"\x8d\x52\x01" * 480  # lea 1(%edx), %edx
    second = 5 + len(filling)
    guest.write(guest.page, code(0, 10)[:5] + filling + b"\xb9\x5a\x5a\0\0\xc3")
    guest.store(guest.control + MODE, HAMMER)
    choice = random.Random(vcpus)
    for _ in range(REWRITES):
        number = choice.getrandbits(31)
        guest.write_both(
            (guest.page + second + 1, struct.pack("<I", number ^ 0x5A5A)),
            (guest.page + 1, struct.pack("<I", number)),
        )
        guest.check(number, "long block")
    guest.finish()


@pytest.mark.parametrize(("mode", "vcpus"), [(WAIT, 1), (HAMMER, 2)])
def test_code_data_and_code_again(uvm: Boot, mode: int, vcpus: int) -> None:
    """A page written whole is data again and takes plain stores, until the guest executes it."""
    guest = StaleCode(uvm(_build("hvm64"), memory=64 << 20, vcpus=vcpus), lane=0)
    choice = random.Random(mode)
    guest.write(guest.page, code(0, 10).ljust(PAGE, b"\xcc"))
    guest.store(guest.control + MODE, mode)
    domain = guest.guest.domain.incarnation.domain
    frame = domain.physmap.writable(guest.page >> 12)
    for _ in range(REWRITES // 2):
        number, target = choice.getrandbits(31), choice.choice((10, 64, 1000, PAGE - 6))
        writes = [(guest.page, code(choice.getrandbits(31), 64).ljust(PAGE, b"\xcc"))] * 2
        guest.write_both(*writes, (guest.page, code(number, target)))
        if mode == WAIT:
            assert not guest.guest.call(lambda: domain.partition.executed(frame))
        guest.check(number, "data and code")
    assert guest.guest.call(lambda: domain.partition.executed(frame))
    guest.finish()


def test_guest_counts_its_calls(uvm: Boot) -> None:
    """The test's own check: a hammering guest does run the page between the rewrites."""
    guest = StaleCode(uvm(_build("hvm64"), memory=64 << 20), lane=0)
    guest.store(guest.control + MODE, HAMMER)
    first = guest.words(guest.lane, 6)[5]
    deadline = time.monotonic() + 10
    while guest.words(guest.lane, 6)[5] < first + 1000:
        assert time.monotonic() < deadline
    guest.finish()


def test_code_is_what_the_guest_expects() -> None:
    assert code(0, 10).hex() == "bb00000000e900000000b95a5a0000c3"
    assert len(code(1, PAGE - 6)) == PAGE
    assert re.fullmatch(rb"\xbb.{4}\xe9.{4}\xcc{54}\xb9.{4}\xc3", code(7, 64), re.DOTALL)
