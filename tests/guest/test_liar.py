"""A guest that lies to its PV devices: each lie ends in a message, and host and guest go on.

Proves it with real hypercalls, for what all devices share, further consoles and 9pfs. Cannot see
what the unit tests of each backend set up with a scripted frontend.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from .run import Verdict, run_guest
from .test_guests import build_or_skip

SAID = [
    "console 1 of domain 1 is cut off: grant not usable: there is no reference 57005 (status -3)",
    "console 1 of domain 1 is cut off: ",
    "console 1 of domain 1 is cut off: ring indexes that cannot be: 5000 bytes written, 0 not read",
    "console 1 of domain 1 is cut off: ring indexes that cannot be: 0 bytes written, 4294967289 not read",
    "console 1 of domain 1 is cut off: grant not usable: ",
    "9pfs 0 of domain 1 is cut off: its version is '9', not '1'",
    "9pfs 0 of domain 1 is cut off: its node num-rings is '4096', not 1 to 4",
    "9pfs 0 of domain 1 is cut off: its ring_order is 31, not 1 to 9",
    "9pfs 0 of domain 1 is cut off: grant not usable: there is no reference 57005 (status -3)",
    "9pfs 0 of domain 1 is cut off: ring indexes that cannot be: 2147483648 bytes in 4096",
    "9pfs 0 of domain 1 is cut off: a request of 4294967295 bytes, not 7 to 4096",
    "9pfs 0 of domain 1 is cut off: a malformed request of type 110",
    "9pfs 0 of domain 1 is cut off: ring indexes that cannot be: 4294967196 bytes in 4096",
]


@pytest.mark.engine
@pytest.mark.timeout(60)
@pytest.mark.parametrize("variant", ["hvm64", "hvm32pae"])
def test_liar(variant: str, tmp_path: Path) -> None:
    elf = build_or_skip("liar", variant)
    output = tmp_path / "output"
    channel = f"name=liar,connection=file,path={output}"
    run = run_guest(elf, ["--channel", channel, "--p9", f"tag=liar,path={tmp_path},readonly"])
    assert run.verdict is Verdict.SUCCESS, run.report()
    messages = [line for line in run.messages.splitlines() if "attached" not in line]
    assert len(messages) == len(SAID), run.report()
    for line, said in zip(messages, SAID, strict=True):
        assert line.startswith(f"hvmlite: {said}"), (line, said)
    assert output.read_text() == "honest\nhonest\n"
