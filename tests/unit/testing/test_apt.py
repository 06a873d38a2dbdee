"""Proves which of the host's package sources are chosen. Cannot see whether they answer."""

from __future__ import annotations

import pytest

from hvmlite.testing import apt

URIS = """\
'http://mirror.test/debian/dists/trixie/InRelease' a 0
'http://mirror.test/debian/dists/trixie/main/binary-amd64/Packages.xz' b 0
'http://mirror.test/debian/dists/trixie/main/binary-all/Packages.xz' c 0
'http://mirror.test/sec/dists/stable-security/main/binary-amd64/Packages.xz' d 0
'http://elsewhere.test/dists/nodistro/main/binary-amd64/Packages' e 0
'http://elsewhere.test/dists/trixie/tools/binary-amd64/Packages' f 0
"""


@pytest.fixture
def trixie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apt, "release_codename", lambda: "trixie")


def test_host_suites(trixie: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apt.Apt, "run", lambda *_: URIS)
    suites = apt.host_suites()
    assert [(suite.uri, suite.name) for suite in suites] == [
        ("http://mirror.test/debian/", "trixie"),
        ("http://mirror.test/sec/", "stable-security"),
    ]
    assert apt.backports(suites) == [apt.Suite("http://mirror.test/debian/", "trixie-backports")]


def test_no_suite_of_this_release(trixie: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apt.Apt, "run", lambda *_: "")
    with pytest.raises(apt.FetchError, match="no source of trixie is configured"):
        apt.host_suites()


def test_the_ways_to_the_mirror_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    dump = 'APT "";\nAcquire "";\nAcquire::http::Proxy "x";\nAcquire::IndexTargets::deb "";\n'
    monkeypatch.setattr(apt.Apt, "run", lambda *_: dump)
    assert apt.acquire_options() == ['Acquire::http::Proxy "x";']


def test_a_missing_apt_is_a_clear_error() -> None:
    with pytest.raises(apt.FetchError, match="no-such-apt"):
        apt.Apt().run("no-such-apt")


def test_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    options = ['Acquire::http::Proxy "http://proxy.test:1";']
    monkeypatch.setattr(apt, "acquire_options", lambda: options)
    both = {"http_proxy": "http://proxy.test:1", "https_proxy": "http://proxy.test:1"}
    assert apt.proxies() == both
    options.append('Acquire::https::Proxy "DIRECT";')
    monkeypatch.setenv("no_proxy", "mirror.test")
    assert apt.proxies() == {"http_proxy": "http://proxy.test:1", "no_proxy": "mirror.test"}
    options.clear()
    monkeypatch.setenv("http_proxy", "http://other.test:2")
    assert apt.proxies()["http_proxy"] == "http://other.test:2"
