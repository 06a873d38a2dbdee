"""Proves that nothing a guest was told to be durable is missing after `kill -9` of the host process
during writes with fsync: raw and qcow2, at any moment.

Cannot see a power cut: the host's page cache survives a killed process, so that for raw images it is
the order of answers that is proved here, and for qcow2 also what qemu-storage-daemon has written.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from hvmlite.testing import assets, ramdisk
from hvmlite.testing.programs import module_loader

from .command import Command, marked, wait_until
from .guests import QUIET

MANY_ROUNDS = int(os.environ.get("HVMLITE_CRASH_ROUNDS", "50"))
SIZE = 64 << 20

# Each record goes to a sector of its own; the line comes after fsync has returned.
_INIT = """\
#!/bin/busybox sh
export PATH=/bin
mount -t devtmpfs dev /dev
{loads}
until [ -b /dev/xvda ]; do usleep 10000; done
i=0
while :; do
    i=$((i+1))
    echo "record $i" | dd of=/dev/xvda bs=512 conv=sync,fsync seek=$((i*3)) 2>/dev/null || break
    echo "ack $i"
done
"""


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files, loads = module_loader(assets.modules("debian", "xen-blkfront"))
    path = tmp_path_factory.mktemp("writer") / "initrd.cpio"
    init = _INIT.format(loads=loads)
    path.write_bytes(ramdisk.build(init, applets=ramdisk.all_applets(), files=files))
    return path


def crash(kernel: Path, writer: Path, folder: Path, form: str, seed: int) -> int:
    """One round; returns how many records were acknowledged, all of which are there."""
    image = folder / f"disk{seed}.{form}"
    subprocess.run(["qemu-img", "create", "-q", "-f", form, image, str(SIZE)], check=True)
    moment = random.Random(seed).uniform(0, 0.5)
    arguments = [kernel, "--ramdisk", writer, "--memory", "128M", "--cmdline", QUIET]
    with Command(*arguments, "--disk", f"{image},{form},xvda") as command:
        command.expect(rb"ack 5\r?\n")
        time.sleep(moment)
        os.kill(command.pid, signal.SIGKILL)
        command.process.wait()
        assert wait_until(lambda: not marked(command.mark), 10)
        while command._receive(0.2):
            pass
        acknowledged = [int(each) for each in re.findall(rb"ack (\d+)\r?\n", command.output)]
    raw = folder / "raw"

    def convert() -> bool:
        # A process that ends has no environment any more, but holds its locks a moment longer.
        argv = ["qemu-img", "convert", "-f", form, "-O", "raw", image, raw]
        return subprocess.run(argv, check=False, stderr=subprocess.DEVNULL).returncode == 0

    assert wait_until(convert, 10), "the image cannot be read after the crash"
    data = raw.read_bytes()
    for number in acknowledged:
        assert data[number * 3 * 512 :].startswith(b"record %d\n\0" % number), number
    image.unlink()
    return len(acknowledged)


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_killed_host(linux: Path, writer: Path, tmp_path: Path, form: str) -> None:
    assert crash(linux, writer, tmp_path, form, 1) >= 5


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_killed_host_many_times(linux: Path, writer: Path, tmp_path: Path, form: str) -> None:
    total = sum(crash(linux, writer, tmp_path, form, seed) for seed in range(MANY_ROUNDS))
    print(f"{form}: {MANY_ROUNDS} rounds, {total} acknowledged records, none missing")
    assert total >= 5 * MANY_ROUNDS
