from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

import pytest

from wrenn_sandbox.hostagent.settings import DriverChoice, parse


def test_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"data-dir": "/d", "images-dir": "/i", "listen": "127.0.0.1:0", "driver": "fake", "token-file": "/t"}
    settings = parse([f"--{name}={value}" for name, value in given.items()] + ["--max-sandboxes", "3"])
    assert (settings.data_dir, settings.images_dir, settings.token_file) == (Path("/d"), Path("/i"), Path("/t"))
    assert settings.driver is DriverChoice.FAKE and settings.address == ("127.0.0.1", 0)
    assert settings.rules.max_sandboxes == 3 and settings.rules.memory_factor == 0.5
    assert settings.pools.hosts == IPv4Network("10.11.0.0/16")


def test_environment_and_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WRENN_TOKEN_FILE", "/from/env")
    monkeypatch.setenv("WRENN_TAG", "other")
    settings = parse(["--tag", "flag"])
    assert (settings.token_file, settings.tag) == (Path("/from/env"), "flag")


@pytest.mark.parametrize(
    "arguments", [[], ["--token-file", "/t", "--driver", "xen"], ["--token-file", "/t", "--tag", "A b"]]
)
def test_wrong_ones_are_refused(arguments: list[str]) -> None:
    with pytest.raises((SystemExit, ValueError)):
        parse(arguments)


@pytest.mark.parametrize("listen", ["nowhere", ":80", "host:", "host:port"])
def test_addresses_that_are_none(listen: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        parse(["--token-file", "/t", "--listen", listen]).address  # noqa: B018


def test_ipv6_addresses() -> None:
    assert parse(["--token-file", "/t", "--listen", "[::1]:80"]).address == ("::1", 80)
