"""Proves what a console's owner reads, waits for and sends, from any thread; and what is kept.

The guest's side of the ring is in tests/unit/backends.
"""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvmlite.toolstack import console as module
from hvmlite.toolstack.console import HISTORY, Console, ConsoleTimeoutError


@pytest.fixture
def console() -> Console:
    return Console()


def later(seconds: float, function: object, *args: object) -> None:
    timer = threading.Timer(seconds, function, args)  # type: ignore[arg-type]
    timer.daemon = True
    timer.start()


# --- output ----------------------------------------------------------------------------------


def test_read_gives_what_is_new(console: Console) -> None:
    console.received(b"one ")
    console.received(b"two")
    assert console.read() == b"one two"
    console.received(b"three")
    assert console.read() == b"three"
    assert console.output == b"one twothree"


def test_read_waits(console: Console) -> None:
    later(0.05, console.received, b"late")
    assert console.read(timeout=10) == b"late"
    begin = time.monotonic()
    assert console.read(timeout=0.05) == b""
    assert 0.04 < time.monotonic() - begin < 5
    assert console.read(timeout=0) == b""


def test_read_ends_with_the_console(console: Console) -> None:
    console.received(b"last")
    console.close()
    assert console.read() == b"last"
    assert console.read() == b""
    console.close()


def test_close_wakes_who_waits(console: Console) -> None:
    later(0.05, console.close)
    assert console.read() == b""


# --- expect ----------------------------------------------------------------------------------


def test_expect_reads_up_to_the_match(console: Console) -> None:
    console.received(b"login: user\nPassword: ")
    match = console.expect(r"login: (\w+)")
    assert match[1] == b"user"
    assert console.read() == b"\nPassword: "


def test_expect_sees_only_what_is_unread(console: Console) -> None:
    console.received(b"ready ")
    console.expect("ready")
    with pytest.raises(ConsoleTimeoutError):
        console.expect("ready", timeout=0)
    console.received(b"ready again")
    assert console.expect(b"ready").start() == 6


def test_expect_across_pieces(console: Console) -> None:
    def speak() -> None:
        for piece in (b"lo", b"gin", b": "):
            time.sleep(0.01)
            console.received(piece)

    threading.Thread(target=speak).start()
    console.expect("login: $", timeout=10)


def test_expect_has_a_deadline(console: Console) -> None:
    console.received(b"x" * 500 + b"kernel panic")
    begin = time.monotonic()
    with pytest.raises(ConsoleTimeoutError) as caught:
        console.expect("login:", timeout=0.05)
    assert time.monotonic() - begin < 5
    assert str(caught.value).startswith("no b'login:': not within 0.05 s; last: 'xxx")
    assert str(caught.value).endswith("kernel panic'")
    assert len(str(caught.value)) < 500


def test_expect_at_the_end(console: Console) -> None:
    console.received(b"bye")
    console.close()
    console.expect("bye")
    with pytest.raises(ConsoleTimeoutError, match="the console ended"):
        console.expect("hello", timeout=60)


def test_expect_when_it_ends_meanwhile(console: Console) -> None:
    later(0.05, console.close)
    with pytest.raises(ConsoleTimeoutError, match="the console ended"):
        console.expect("hello", timeout=60)


# --- what is kept ----------------------------------------------------------------------------


def test_old_output_is_dropped(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HISTORY", 10)
    console.received(b"0123456789")
    assert console.read() == b"0123456789"
    console.received(b"abcdef")
    assert console.output == b"6789abcdef"
    assert console.read() == b"abcdef"
    console.received(b"a long piece of output")
    assert console.read() == b" of output"
    assert HISTORY == 1 << 20


def test_expect_goes_on_after_a_drop(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HISTORY", 10)
    console.received(b"0123456789")
    console.received(b"abcde#")
    console.expect("c")
    assert console.read() == b"de#"


@given(st.lists(st.one_of(st.binary(max_size=9), st.sampled_from([None, "expect"])), max_size=40))
@settings(max_examples=100)
def test_against_one_long_string(steps: list[bytes | str | None]) -> None:
    keep = 16
    original, module.HISTORY = module.HISTORY, keep
    try:
        console, text, position = Console(), b"", 0
        for step in steps:
            if isinstance(step, bytes):
                console.received(step)
                text += step
                continue
            start = max(position, len(text) - keep, 0)
            if step is None:
                assert console.read(timeout=0) == text[start:]
                position = len(text)
                continue
            found = text.find(b"\0", start)
            if found < 0:
                with pytest.raises(ConsoleTimeoutError):
                    console.expect(rb"\x00", timeout=0)
            else:
                console.expect(rb"\x00", timeout=0)
                position = found + 1
        assert console.output == text[-keep:]
    finally:
        module.HISTORY = original


def test_sinks_get_everything_as_it_comes(console: Console) -> None:
    seen: list[bytes] = []
    console.received(b"before")
    console.add_sink(seen.append)
    console.add_sink(lambda data: seen.append(data.upper()))
    console.received(b"a")
    console.received(b"b")
    assert seen == [b"a", b"A", b"b", b"B"]


# --- input -----------------------------------------------------------------------------------


def test_input_goes_to_the_guest(console: Console) -> None:
    seen: list[bytes] = []
    console.connect(seen.append, lambda: 17)
    console.write("text\n")
    console.write(b"\xff")
    console.write("ü")
    assert seen == [b"text\n", b"\xff", "ü".encode()]
    assert console.input_room == 17


def test_input_before_there_is_a_guest_waits(console: Console) -> None:
    seen: list[bytes] = []
    console.write("early ")
    console.write("bird")
    assert console.input_room == HISTORY - 10
    console.connect(seen.append, lambda: 5)
    assert seen == [b"early bird"]
    console.connect(seen.append)
    assert seen == [b"early bird"]


def test_input_between_two_guests_waits(console: Console) -> None:
    first: list[bytes] = []
    second: list[bytes] = []
    console.connect(first.append)
    console.connect(None)
    console.write("for the next")
    console.connect(second.append)
    assert (first, second) == ([], [b"for the next"])


def test_many_threads(console: Console) -> None:
    """Writers, a reader and one who waits, all at once."""
    fed: list[bytes] = []
    console.connect(fed.append)

    def guest() -> None:
        for i in range(200):
            console.received(b"%d\n" % i)
        console.close()

    def user() -> None:
        for _ in range(200):
            console.write("x")

    threads = [threading.Thread(target=guest)] + [threading.Thread(target=user) for _ in range(3)]
    for thread in threads:
        thread.start()
    text = b""
    while piece := console.read(timeout=10):
        text += piece
    for thread in threads:
        thread.join()
    assert text == b"".join(b"%d\n" % i for i in range(200))
    assert len(fed) == 600
