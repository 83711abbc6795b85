from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from wrenn_sandbox.core.errors import Exhausted, Unavailable, WrennError
from wrenn_sandbox.disk import qemu_img


class _Child:
    """A qemu-img that ends with ``code`` after some looks at it, or never."""

    def __init__(self, code: int | None, said: bytes = b"") -> None:
        self.pid, self.code, self.said, self.killed = 2**22 + 1, code, said, False
        self.argv: list[str] = []

    def __call__(self, argv: list[object], *, stdout: object, **_: object) -> _Child:
        self.argv = [str(word) for word in argv]
        stdout.write(self.said)  # type: ignore[attr-defined]
        return self

    def poll(self) -> int | None:
        return -9 if self.killed else self.code

    def wait(self, timeout: float | None = None) -> int:
        if self.code is None and not self.killed:
            raise subprocess.TimeoutExpired("qemu-img", timeout or 0)
        return self.code if self.code is not None else -9

    def kill(self, pid: int, number: int) -> None:
        assert (pid, number) == (self.pid, signal.SIGKILL)
        self.killed = True


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(qemu_img, "find_tool", lambda name: Path("/usr/bin") / name)
    return tmp_path


def _run(monkeypatch: pytest.MonkeyPatch, child: _Child, room: Path, *, wanted: bool = True) -> int:
    monkeypatch.setattr(subprocess, "Popen", child)
    monkeypatch.setattr("os.killpg", child.kill)
    return qemu_img.run("check", "disk", room=room, wanted=lambda: wanted, accepted=(0, 1))


@pytest.mark.parametrize("code", [0, 1])
def test_the_code_is_the_answer(monkeypatch: pytest.MonkeyPatch, room: Path, code: int) -> None:
    child = _Child(code)
    assert _run(monkeypatch, child, room) == code
    assert child.argv == ["/usr/bin/setpriv", "--pdeathsig", "KILL", "--", "/usr/bin/qemu-img", "check", "disk"]
    assert not child.killed


def test_a_failure_says_what_it_said(monkeypatch: pytest.MonkeyPatch, room: Path) -> None:
    with pytest.raises(Unavailable, match="qemu-img check failed: bad disk") as caught:
        _run(monkeypatch, _Child(2, b"bad disk\n"), room)
    assert caught.value.slug == "disk_unavailable"


def test_a_failure_on_a_full_disk_is_one_of_room(monkeypatch: pytest.MonkeyPatch, room: Path) -> None:
    monkeypatch.setattr("os.statvfs", lambda _: SimpleNamespace(f_bfree=3, f_frsize=4096))
    with pytest.raises(Exhausted) as caught:
        _run(monkeypatch, _Child(2), room)
    assert caught.value.slug == "host_disk_full"


@pytest.mark.parametrize(("wanted", "slug"), [(False, "agent_stopping"), (True, "disk_unavailable")])
def test_one_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch, room: Path, wanted: bool, slug: str) -> None:
    monkeypatch.setattr(qemu_img, "LIMIT_S", -1.0)
    child = _Child(None)
    with pytest.raises(WrennError) as caught:
        _run(monkeypatch, child, room, wanted=wanted)
    assert caught.value.slug == slug
    assert child.killed
