"""Programs compiled and run in the guest, over and over, from disks that are written anew each time.

Pages that held code are given to block I/O again and again, which writes other code to them while
the engine has the old code's translation: nothing old may ever run. Each round writes a new disk
behind the guest's back, with a program that is the same in every round and one that is different in
each; the guest compiles both, runs them, drops its caches, and runs them again from the disk. Every
result is compared: with the other rounds, or with what this host's processor makes of the same
source. Cannot see code that a guest writes itself (tests/guest/selfmod.c).

HVMLITE_COMPILE_ROUNDS says how many rounds (default 3; a hundred take about half an hour).
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from hvmlite.testing.rootfs import PARTITION_START, check_ext4, ext4_image

from .debian_guest import DebianGuest, rootfs_or_skip

ROUNDS = int(os.environ.get("HVMLITE_COMPILE_ROUNDS", "3"))
ROUND_LIMIT = 300
PROJECT = Path(__file__).with_name("project")
DISK_SIZE = 16 << 20
FUNCTIONS = 200

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300 + ROUNDS * 60)]

ROUND = """\
udevadm settle; blockdev --flushbufs /dev/xvdb; echo 3 >/proc/sys/vm/drop_caches
set -e
mount /dev/xvdb /mnt
make -s -C /mnt
sha256sum /mnt/fixed | cut -d' ' -f1 >/run/binary
/mnt/fixed >/run/fixed.1; /mnt/fresh >/run/fresh.1
umount /mnt; echo 3 >/proc/sys/vm/drop_caches
mount /dev/xvdb /mnt
sha256sum /mnt/fixed | cut -d' ' -f1 >/run/binary.2
/mnt/fixed >/run/fixed.2; /mnt/fresh >/run/fresh.2
umount /mnt
cmp /run/binary /run/binary.2; cmp /run/fixed.1 /run/fixed.2; cmp /run/fresh.1 /run/fresh.2
cat /run/binary /run/fixed.2 /run/fresh.2
"""


def fresh_source(number: int) -> str:
    """A program of functions that no other round has, which prints what all of them make of it."""
    choice = random.Random(number)
    functions, calls = [], []
    for index in range(FUNCTIONS):
        shift = choice.randrange(1, 63)
        steps = "\n".join(
            f"\tx {operation}= {choice.getrandbits(63) | 1}u; x = x << {shift} | x >> {64 - shift};"
            for operation in choice.choices(("+", "^", "*", "-"), k=choice.randrange(2, 8))
        )
        functions.append(
            f"static __attribute__((noinline)) uint64_t f{index}(uint64_t x)\n"
            f"{{\n{steps}\n\treturn x;\n}}\n"
        )
        calls.append(f"f{index}")
    choice.shuffle(calls)
    return (
        '#include <inttypes.h>\n#include <stdio.h>\n\n#include "project.h"\n\n'
        + "\n".join(functions)
        + f"\nstatic uint64_t (*const all[])(uint64_t) = {{ {', '.join(calls)} }};\n\n"
        "int main(void)\n{\n"
        f"\tuint64_t x = {number}, values[{FUNCTIONS}];\n\n"
        "\tfor (int turn = 0; turn < 50; turn++)\n"
        f"\t\tfor (int i = 0; i < {FUNCTIONS}; i++)\n\t\t\tvalues[i] = x = all[i](x);\n"
        '\tprintf("fresh %016" PRIx64 " %016" PRIx64 "\\n", x, digest(values, sizeof(values)));\n'
        "\treturn 0;\n}\n"
    )


def project(folder: Path, number: int) -> Path:
    """Writes the project for a round."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(PROJECT, folder)
    (folder / "fresh.c").write_text(fresh_source(number))
    return folder


def natively(folder: Path) -> str:
    """What both programs print on this host."""
    subprocess.run(["make", "-s", "-C", str(folder)], check=True)
    return "".join(
        subprocess.run([folder / name], check=True, capture_output=True, text=True).stdout
        for name in ("fixed", "fresh")
    )


def write_over(disk: Path, content: Path) -> None:
    """Changes the disk in place, as the guest has it open."""
    with content.open("rb") as source, disk.open("r+b") as target:
        shutil.copyfileobj(source, target)
        target.flush()
        os.fsync(target.fileno())


def test_rounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rootfs = rootfs_or_skip()
    image = rootfs.copy(tmp_path / "debian.raw")
    disk, made = tmp_path / "project.raw", tmp_path / "made.raw"
    ext4_image(disk, DISK_SIZE, project(tmp_path / "project", 0))
    binaries: set[str] = set()
    wrong: list[str] = []
    disks = [f"{image},raw,xvda,w", f"{disk},raw,xvdb,w"]
    with DebianGuest(rootfs, disks, memory="512M") as guest:
        guest.login()
        guest.run(f"cat >/root/round <<'END'\n{ROUND}END")
        for number in range(ROUNDS):
            sources = project(tmp_path / "project", number)
            ext4_image(made, DISK_SIZE, sources)
            write_over(disk, made)
            begin = time.monotonic()
            status, output = guest.attempt("sh /root/round", ROUND_LIMIT)
            seconds = time.monotonic() - begin
            found = re.fullmatch(r"([0-9a-f]{64})\n(.*)", output, re.DOTALL)
            expected = natively(sources)
            good = status == 0 and found is not None and found[2] == expected
            if found is not None:
                binaries.add(found[1])
            if not good:
                wrong.append(f"round {number}: status {status}: {output}; expected {expected}")
            with capsys.disabled():
                if ROUNDS > 3:
                    print(
                        f"round {number}: {'ok' if good else 'WRONG'} {seconds:.1f} s", flush=True
                    )
            assert check_ext4(disk) == ""
        finished = guest.power_off()
    assert wrong == []
    assert len(binaries) == 1, binaries
    assert finished.status == 0, finished
    assert check_ext4(image, PARTITION_START) == ""


def test_every_round_has_its_own_program() -> None:
    assert fresh_source(1) == fresh_source(1)
    assert len({fresh_source(number) for number in range(20)}) == 20
