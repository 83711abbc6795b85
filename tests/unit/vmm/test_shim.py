"""Where the shim of a fake machine comes from. gcc is played by a stand-in."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.vmm import shim


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """Calls of the compiler."""
    calls: list[tuple[object, ...]] = []

    async def run(*argv: str | Path, timeout_s: float) -> str:
        calls.append(argv)
        Path(argv[argv.index("-o") + 1]).write_text("shim")
        return ""

    monkeypatch.setattr(shim, "run", run)
    monkeypatch.delenv(shim.SHIM_VARIABLE, raising=False)
    return calls


def test_it_is_compiled_once_and_for_every_user(tmp_path: Path, compiled: list[tuple[object, ...]]) -> None:
    first, again = (asyncio.run(shim.found_shim(tmp_path / "fake")) for _ in range(2))
    assert first == again
    assert first.stat().st_mode & 0o777 == 0o755
    assert len(compiled) == 1
    assert list((tmp_path / "fake").iterdir()) == [first]


def test_a_named_one_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = tmp_path / "mine"
    monkeypatch.setenv(shim.SHIM_VARIABLE, str(named))
    with pytest.raises(Unavailable) as caught:
        asyncio.run(shim.found_shim(tmp_path))
    assert caught.value.slug == "shim_missing"
    named.touch(mode=0o755)
    assert asyncio.run(shim.found_shim(tmp_path)) == named


def test_without_a_compiler_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: list[tuple[object, ...]]
) -> None:
    async def run(*_argv: str | Path, timeout_s: float) -> str:
        raise Unavailable("gcc is not installed.", slug="tool_missing")

    monkeypatch.setattr(shim, "run", run)
    with pytest.raises(Unavailable, match=r"WRENN_EXEC_SHIM.*gcc is not installed") as caught:
        asyncio.run(shim.found_shim(tmp_path / "fake"))
    assert caught.value.slug == "shim_missing"
    assert list((tmp_path / "fake").iterdir()) == []
