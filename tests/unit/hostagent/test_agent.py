from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from wrenn_sandbox.core.errors import Conflict, Invalid, Unavailable
from wrenn_sandbox.hostagent import agent
from wrenn_sandbox.hostagent.agent import SAME_SIGNAL_S, Orders, read_token, sole_user_of


def test_a_token_is_read_without_its_line_end(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0123456789abcdef\n")
    assert read_token(tmp_path / "token") == "0123456789abcdef"


@pytest.mark.parametrize("content", ["", "short", "with\x00nul-0123456789", "ünicode-0123456789", None])
def test_a_token_that_guards_nothing_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "token").write_text(content)
    with pytest.raises(Invalid) as refused:
        read_token(tmp_path / "token")
    assert refused.value.slug == "invalid_token_file" and str(tmp_path) in refused.value.message


def test_a_data_directory_has_one_user(tmp_path: Path) -> None:
    with sole_user_of(tmp_path / "d"):
        assert (tmp_path / "d" / "run").is_dir()
        with pytest.raises(Conflict) as taken:
            sole_user_of(tmp_path / "d").__enter__()
        assert taken.value.slug == "data_dir_in_use"
    with sole_user_of(tmp_path / "d"):
        pass


def test_a_burst_of_signals_is_one_and_only_a_later_one_is_impatience() -> None:
    gone: list[bool] = []
    orders = Orders(asyncio.Event(), lambda: gone.append(True))
    for now_s in (10.0, 10.0, 10.0 + SAME_SIGNAL_S):
        orders.heard(now_s)
        assert orders.stop.is_set() and gone == []
    orders.heard(10.1 + SAME_SIGNAL_S)
    assert gone == [True]


def test_no_chore_that_fails_ends_the_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    async def fails(name: object, error: Exception) -> None:
        done.append(str(name))
        raise error

    async def taken_over(registry: object) -> list[Path]:
        return [Path("one"), Path("two")]

    async def for_ever() -> None:
        done.append("templates")
        await asyncio.Event().wait()

    monkeypatch.setattr(agent, "take_over", taken_over)
    monkeypatch.setattr(agent.journal, "clear", lambda path: fails(path, Unavailable("stuck", slug="vmm_stuck")))
    platform = SimpleNamespace(network=SimpleNamespace(sweep=lambda: fails("sweep", OSError("busy"))))
    builds = SimpleNamespace(held=lambda: fails("improve", ValueError("a bug")))
    registry = SimpleNamespace(open=lambda: done.append("open"))
    parts = SimpleNamespace(registry=registry, builds=builds, templates=SimpleNamespace(keep=for_ever))

    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            chores = group.create_task(agent._chores(platform, parts))
            while "templates" not in done:
                await asyncio.sleep(0)
            chores.cancel()

    asyncio.run(work())
    assert done == ["open", "one", "two", "sweep", "improve", "templates"]


def test_what_the_agent_cannot_be_without_takes_no_machine_along(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(agent.os, "_exit", codes.append)

    async def fails() -> None:
        raise OSError("the listener is gone")

    asyncio.run(agent._or_exit(fails()))
    assert codes == [1]
