"""What is known of a child from its log, and how often it is started again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from wrenn_sandbox.cli import children
from wrenn_sandbox.cli.children import Child
from wrenn_sandbox.core.errors import Bug, Unavailable, first_cause


def _child(folder: Path) -> Child:
    return Child("agent", "module", "127.0.0.1:0", (), folder / "ready.json", folder / "agent.log", 1.0)


def test_the_end_of_the_log_is_that_of_this_life(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("earlier\n")
    assert children._prepare_log(log) == 8
    with log.open("a") as file:
        file.write("\n".join(str(i) for i in range(100)))
    assert children._tail(log, 8, 3) == "97\n98\n99"
    assert "earlier" not in children._tail(log, 8, 1000)
    assert children._tail(tmp_path / "none", 0) == ""


def test_a_long_log_is_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "_LOG_LIMIT_BYTES", 3)
    (tmp_path / "a.log").write_text("long")
    assert children._prepare_log(tmp_path / "a.log") == 0
    assert (tmp_path / "a.log.1").read_text() == "long"


def test_last_words_become_the_error(tmp_path: Path) -> None:
    child = _child(tmp_path)
    child.log_file.write_text("{}\nhostagent: Cannot listen on [::1]:80: no. [address_in_use]\n")
    error = children._not_started(child, 0)
    assert (type(error), error.slug) == (Unavailable, "address_in_use")
    assert error.message == "The agent did not start: Cannot listen on [::1]:80: no."


def test_without_last_words_the_log_is_shown(tmp_path: Path) -> None:
    child = _child(tmp_path)
    child.log_file.write_text("Traceback\nKeyError: 'x'\n")
    error = children._not_started(child, 0)
    assert (type(error), error.slug) == (Bug, "start_failed")
    assert "KeyError: 'x'" in error.message and str(child.log_file) in error.message


def _lives(monkeypatch: pytest.MonkeyPatch, *lives: Exception | None) -> list[str]:
    """Every life ends at once, with an error or, for None, by itself; the last one lasts. Returns its addresses."""
    script, listened = list(lives), []

    @asynccontextmanager
    async def running(child: Child) -> AsyncIterator[object]:
        listened.append(child.listen)
        if not script:
            ended = asyncio.Event()
        elif (error := script.pop(0)) is not None:
            raise error
        else:
            (ended := asyncio.Event()).set()
        yield SimpleNamespace(wait=ended.wait), {"url": "http://127.0.0.1:77"}

    async def sleep(_seconds: float) -> None:
        return

    monkeypatch.setattr(children, "running", running)
    monkeypatch.setattr(children.asyncio, "sleep", sleep)
    return listened


async def _kept(child: Child, said: list[str]) -> None:
    async with children.kept(child, said.append) as info, asyncio.timeout(5):
        assert info["url"] == "http://127.0.0.1:77"
        await asyncio.Event().wait()


def _error_of(child: Child, said: list[str]) -> BaseException:
    with pytest.raises(BaseExceptionGroup) as caught:
        asyncio.run(_kept(child, said))
    return first_cause(caught.value)


def test_a_first_start_that_fails_is_final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cause = Unavailable("no")
    listened = _lives(monkeypatch, cause)
    assert _error_of(_child(tmp_path), []) is cause
    assert len(listened) == 1


def test_it_is_started_again_at_its_address_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listened = _lives(monkeypatch, None, Unavailable("not now"), None, Unavailable("not now"), None)
    said: list[str] = []
    error = _error_of(_child(tmp_path), said)
    assert isinstance(error, Bug) and error.slug == "start_failed"
    assert listened == ["127.0.0.1:0"] + ["127.0.0.1:77"] * (children.RESTART_LIMIT - 1)
    assert len(said) == children.RESTART_LIMIT - 1 and "not now" in said[1]


class _Stubborn:
    """A process that ends only when killed."""

    pid, returncode = 1 << 30, None

    def __init__(self) -> None:
        self.ended, self.told = asyncio.Event(), asyncio.Event()

    def terminate(self) -> None:
        self.told.set()

    async def wait(self) -> None:
        await self.ended.wait()
        self.returncode = 0


def test_a_cancel_does_not_leave_it_behind(tmp_path: Path) -> None:
    async def main() -> None:
        process = _Stubborn()
        async with asyncio.TaskGroup() as group:
            stopping = group.create_task(children._stop(_child(tmp_path), process))
            await process.told.wait()
            for _ in range(3):
                stopping.cancel()
                await asyncio.sleep(0)
                assert not stopping.done()
            process.ended.set()
        assert stopping.cancelled() and process.returncode == 0

    asyncio.run(main())
