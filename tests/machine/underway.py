"""Operations that a test can catch in the middle: sent, seen under way on the host, then answered, left or broken.

What must not be lost are a sandbox's *marks*: a text on its disk, one in its memory, and a program that runs.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from tests.running import Platform

Found = TypeVar("Found")
LIMIT_S = 60.0
VMM_RECORD = "vmm/vmm.json"


def until(look: Callable[[], Found], what: object = "", *, every_s: float = 0.1) -> Found:
    """Look until there is something."""
    deadline = time.monotonic() + LIMIT_S
    while not (found := look()):
        assert time.monotonic() < deadline, f"it never came: {what or look}"
        time.sleep(every_s)
    return found


@dataclass(frozen=True)
class Answer:
    """What the API said; ``slug`` is empty for what is no error."""

    status: int
    body: dict[str, object]

    @property
    def slug(self) -> str:
        error = self.body.get("error")
        return str(error["code"]) if isinstance(error, dict) else ""

    @property
    def said(self) -> tuple[int, str]:
        """Status and slug."""
        return self.status, self.slug


class UnderWay:
    """A request that was sent, on a connection of its own."""

    def __init__(self, wrenn: Platform, method: str, path: str, **body: object) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(wrenn.url).netloc, timeout=120)
        headers = {"X-API-Key": str(wrenn.ready["api_key"]), "content-type": "application/json"}
        self._connection.request(method, path, json.dumps(body) if body else None, headers)

    def answer(self) -> Answer:
        """Wait for the answer."""
        try:
            response = self._connection.getresponse()
            content = response.read()
            return Answer(response.status, json.loads(content) if content else {})
        finally:
            self._connection.close()

    def leave(self) -> None:
        """Go away without an answer."""
        self._connection.close()


@dataclass(frozen=True)
class Signs:
    """What an operation does to the data directory, beside what was there before."""

    data_dir: Path
    before: frozenset[Path]
    vmms: frozenset[int]

    @classmethod
    def now(cls, wrenn: Platform) -> Signs:
        folders = [*wrenn.data_dir.glob("run/*"), *wrenn.data_dir.glob("builds/.*")]
        vmms = {_vmm_in(folder) for folder in folders if (folder / VMM_RECORD).exists()}
        return cls(wrenn.data_dir, frozenset(folders), frozenset(vmms))

    def draft(self, *files: str) -> Path | None:
        """A new build in the making that has these files already."""
        return self._new("builds/.*.new", *files)

    def machine(self) -> Path | None:
        """The directory of a new machine, whose VMM has been started."""
        return self._new("run/*", VMM_RECORD)

    def vmm(self) -> int:
        """Process id of that VMM."""
        machine = self.machine()
        assert machine is not None
        return _vmm_in(machine)

    def death(self) -> bool:
        """A VMM that ran before has ended."""
        return not all(_lives(pid) for pid in self.vmms)

    def _new(self, pattern: str, *files: str) -> Path | None:
        for path in self.data_dir.glob(pattern):
            if path not in self.before and all((path / name).exists() for name in files):
                return path
        return None


def _vmm_in(machine: Path) -> int:
    return int(json.loads((machine / VMM_RECORD).read_text())["pid"])


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def vmm_of(wrenn: Platform, sandbox: str) -> int:
    """The VMM of a running sandbox that was never rolled back."""
    return _vmm_in(wrenn.data_dir / "run" / sandbox)


@dataclass
class Stage:
    """A platform, and what operations need and leave on it."""

    wrenn: Platform
    snapshots: list[str] = field(default_factory=list)

    def call(self, method: str, path: str, **body: object) -> Answer:
        return self.begin(method, path, **body).answer()

    def begin(self, method: str, path: str, **body: object) -> UnderWay:
        return UnderWay(self.wrenn, method, path, **body)

    def marked(self, text: str = "first") -> str:
        """A new sandbox with marks."""
        sandbox = str(self.wrenn.create()["id"])
        self.wrenn.sh(sandbox, "sleep 3600 >/dev/null 2>&1 & echo $! >/home/user/pid")
        self.mark(sandbox, text)
        return sandbox

    def heavy(self) -> str:
        """One with so much new memory that it takes a while to keep: long enough to be seen."""
        sandbox = self.marked()
        self.wrenn.sh(sandbox, "head -c 40000000 /dev/urandom >/dev/shm/heavy")
        return sandbox

    def mark(self, sandbox: str, text: str) -> None:
        self.wrenn.sh(sandbox, f"echo {text} >/home/user/mark; echo {text} >/dev/shm/mark")

    def marks(self, sandbox: str) -> str:
        """Its mark, when it can be used again; the same on disk and in memory, and its program runs."""
        script = "kill -0 $(cat /home/user/pid) && cat /home/user/mark /dev/shm/mark"

        def used() -> str:
            answer = self.call("POST", f"/v1/sandboxes/{sandbox}/exec", cmd="/bin/sh", args=["-c", script])
            assert answer.status in {200, 409, 503}, answer  # not yet
            return str(answer.body["stdout"]) if answer.status == 200 else ""

        on_disk, in_memory = until(used, f"{sandbox} can be used").split()
        assert on_disk == in_memory
        return on_disk

    def status(self, sandbox: str) -> str:
        answer = self.call("GET", f"/v1/sandboxes/{sandbox}")
        return "stopped" if answer.status == 404 else str(answer.body["status"])

    def await_status(self, sandbox: str, *wanted: str) -> str:
        return until(lambda: now if (now := self.status(sandbox)) in wanted else "", f"{sandbox} {wanted}")

    def sandboxes(self) -> frozenset[str]:
        return frozenset(str(item["id"]) for item in self.call("GET", "/v1/sandboxes?limit=100").body["items"])

    def require_nothing_of(self, sandbox: str) -> None:
        """It is not there any more: no machine, no directory, no build that it keeps."""
        self.await_status(sandbox, "stopped", "error")
        data_dir = self.wrenn.data_dir
        left = [*data_dir.glob(f"run/{sandbox}*"), *data_dir.glob(f"holds/{sandbox}")]
        until(lambda: not any(path.exists() for path in left), left)


@contextmanager
def stage_on(wrenn: Platform) -> Iterator[Stage]:
    """At the end every sandbox and snapshot is destroyed, and then no build is kept, whole or half."""
    stage = Stage(wrenn)
    yield stage
    for name in stage.snapshots:
        assert wrenn.client.delete(f"/v1/snapshots/{name}").status_code in {204, 404}
    for sandbox in stage.sandboxes():
        wrenn.kill(sandbox)
    for folder in ("builds", "holds"):
        until(lambda: not list((wrenn.data_dir / folder).iterdir()), folder)  # noqa: B023


@dataclass(frozen=True)
class Operation:
    """``request`` does it to a sandbox that ``prepare`` made; ``sign`` is there in its middle.

    ``check`` looks at a sandbox to which it was done (with the answer, if it was heard), ``undone`` at one to which it
    was not; both leave one to which it can be done.
    """

    name: str
    prepare: Callable[[Stage], str]
    request: Callable[[Stage, str], UnderWay]
    sign: Callable[[Signs], object]
    check: Callable[[Stage, str], None]
    undone: Callable[[Stage, str], None]

    def begin(self, stage: Stage, sandbox: str) -> tuple[UnderWay, Signs]:
        """Begin it, and return in its middle."""
        signs = Signs.now(stage.wrenn)
        request = self.request(stage, sandbox)
        until(lambda: self.sign(signs), f"a sign of {self.name}", every_s=0.0002)
        return request, signs

    def again(self, stage: Stage, sandbox: str) -> None:
        """Do it without disturbance."""
        answer = until(lambda: self._done(stage, sandbox), f"another {self.name}", every_s=0.5)
        assert answer.status in {200, 201, 204}, answer
        self.check(stage, sandbox)

    def _done(self, stage: Stage, sandbox: str) -> Answer | None:
        """None when it is too early: no agent is there, or the intent of a snapshot before still has the name.

        That one may also have come to be after all.
        """
        answer = self.request(stage, sandbox).answer()
        if answer.said == (409, "already_exists") and _has_snapshot(stage, sandbox):
            return Answer(201, {})
        return None if answer.slug in {"already_exists", "host_unavailable", "agent_starting"} else answer


def _running(stage: Stage, sandbox: str) -> None:
    assert stage.marks(sandbox) == "first"
    assert stage.status(sandbox) == "running"


def _paused(stage: Stage) -> str:
    sandbox = stage.marked()
    assert stage.call("POST", f"/v1/sandboxes/{sandbox}/pause").status == 200
    return sandbox


def _resumed(stage: Stage, sandbox: str) -> None:
    stage.await_status(sandbox, "paused")
    assert stage.call("POST", f"/v1/sandboxes/{sandbox}/resume").status == 200
    _running(stage, sandbox)


def _still_paused(stage: Stage, sandbox: str) -> None:
    stage.await_status(sandbox, "paused")


def _none(stage: Stage) -> str:
    return ""


def _created(stage: Stage, _: str) -> None:
    made = stage.sandboxes()
    assert made
    for sandbox in made:
        stage.await_status(sandbox, "running")
        assert stage.wrenn.sh(sandbox, "echo alive") == "alive\n"
        stage.wrenn.kill(sandbox)


def _not_created(stage: Stage, _: str) -> None:
    for sandbox in stage.sandboxes():
        stage.await_status(sandbox, "error")
        stage.require_nothing_of(sandbox)


def _name(stage: Stage, sandbox: str) -> str:
    name = f"of-{sandbox[3:11]}"
    if name not in stage.snapshots:
        stage.snapshots.append(name)
    return name


def _has_snapshot(stage: Stage, sandbox: str) -> bool:
    return any(item["name"] == _name(stage, sandbox) for item in stage.wrenn.client.get("/v1/snapshots").json())


def _snapshotted(stage: Stage, sandbox: str) -> None:
    until(lambda: _has_snapshot(stage, sandbox), "the snapshot")
    made = str(stage.wrenn.create(template=_name(stage, sandbox))["id"])
    _running(stage, made)
    _running(stage, sandbox)
    stage.wrenn.kill(made)
    assert stage.call("DELETE", f"/v1/snapshots/{_name(stage, sandbox)}").status == 204


def _not_snapshotted(stage: Stage, sandbox: str) -> None:
    _running(stage, sandbox)


def _forked(stage: Stage, sandbox: str) -> None:
    def children() -> frozenset[str]:
        found = stage.sandboxes() - {sandbox}
        return found if {stage.status(child) for child in found} == {"running"} else frozenset()

    for child in until(children, "the children"):
        _running(stage, child)
        stage.wrenn.kill(child)
    _running(stage, sandbox)


def _not_forked(stage: Stage, sandbox: str) -> None:
    for child in stage.sandboxes() - {sandbox}:
        stage.await_status(child, "error", "stopped")
        stage.require_nothing_of(child)
        stage.wrenn.kill(child)
    _running(stage, sandbox)


def _with_a_past(stage: Stage) -> str:
    sandbox = stage.marked("past")
    assert stage.call("POST", "/v1/snapshots", sandbox_id=sandbox, name=_name(stage, sandbox)).status == 201
    stage.mark(sandbox, "first")
    return sandbox


def _put_back(stage: Stage, sandbox: str) -> None:
    until(lambda: stage.marks(sandbox) == "past", "the past")
    stage.mark(sandbox, "first")


def _destroyed(stage: Stage, sandbox: str) -> None:
    stage.require_nothing_of(sandbox)
    assert stage.status(sandbox) == "stopped"


def _to(path: str, **body: object) -> Callable[[Stage, str], UnderWay]:
    return lambda stage, sandbox: stage.begin("POST", f"/v1/sandboxes/{sandbox}/{path}", **body)


CREATE = Operation(
    "create", _none, lambda stage, _: stage.begin("POST", "/v1/sandboxes", template="base"),
    Signs.machine, _created, _not_created,
)  # fmt: skip
PAUSE = Operation("pause", Stage.heavy, _to("pause"), lambda signs: signs.draft("state"), _resumed, _running)
RESUME = Operation(
    "resume", _paused, _to("resume"), Signs.machine, _running, _still_paused,
)  # fmt: skip
SNAPSHOT = Operation(
    "snapshot", Stage.heavy,
    lambda stage, sandbox: stage.begin("POST", "/v1/snapshots", sandbox_id=sandbox, name=_name(stage, sandbox)),
    lambda signs: signs.draft("disk.qcow2"), _snapshotted, _not_snapshotted,
)  # fmt: skip
FORK = Operation("fork", Stage.marked, _to("fork", count=2), Signs.machine, _forked, _not_forked)
ROLLBACK = Operation(
    "rollback", _with_a_past,
    lambda stage, sandbox: stage.begin("POST", f"/v1/sandboxes/{sandbox}/rollback", snapshot=_name(stage, sandbox)),
    Signs.machine, _put_back, _running,
)  # fmt: skip
DESTROY = Operation(
    "destroy", Stage.marked, lambda stage, sandbox: stage.begin("DELETE", f"/v1/sandboxes/{sandbox}"),
    Signs.death, _destroyed, _running,
)  # fmt: skip
