from __future__ import annotations

import marshal
import os
import resource
from dataclasses import replace
from pathlib import Path

import pytest

from wrenn_sandbox.core.errors import Bug, Unavailable
from wrenn_sandbox.vmm import jail, launch
from wrenn_sandbox.vmm.launch import JailFile, Plan

PLAN = Plan(
    name="sb-1",
    directory=Path("/d/vmm"),
    files=(JailFile(Path("/i/tools"), "/tools"), JailFile(Path("/d/disk"), "/disk", writable=True)),
    argv=("/runtime/x", "-y"),
    fds={1: 20, 2: 21, 6: 22},
    uid=1001,
    gid=1002,
)


def test_the_message_is_the_plan_in_plain_values() -> None:
    message = marshal.loads(marshal.dumps(launch._message(PLAN)))
    assert message["root"] == "/d/vmm"
    assert message["files"] == [("/i/tools", "/tools", False), ("/d/disk", "/disk", True)]
    assert [device[0] for device in message["devices"]] == ["null", "zero", "urandom"]
    assert message["first_unused_fd"] == 7
    assert message["argv"] == ["/runtime/x", "-y"]
    assert message["env"] == {}
    assert (resource.RLIMIT_CORE, 0) in message["limits"]


def test_the_control_socket_is_kept_until_the_exec() -> None:
    assert launch._message(replace(PLAN, fds={}))["first_unused_fd"] == jail.CONTROL_FD + 1


def test_kvm_is_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_device_number", lambda _: (10, 232))
    assert launch._message(replace(PLAN, kvm=True))["devices"][-1] == ("kvm", 10, 232, 0o600)


def test_the_code_that_travels_is_the_jail() -> None:
    names = marshal.loads(launch._CODE).co_names
    assert {"_make_root", "_drop_rights", "main"} <= set(names)
    assert len(launch._CODE) < jail.MESSAGE_BYTES


def test_a_report_is_a_pid_or_a_failure() -> None:
    assert launch._pid_in(b"123") == 123
    for message, said in ((b"error: mount /x: No such file", "mount /x"), (b"", "without a word")):
        with pytest.raises(Unavailable, match=said) as caught:
            launch._pid_in(message)
        assert caught.value.slug == "jail_failed"


def test_a_file_must_be_readable_or_its_own(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch(mode=0o600)
    plan = replace(PLAN, files=(JailFile(path, "/file"),), uid=os.getuid() + 1)
    with pytest.raises(Bug, match=str(path)):
        launch._check_readable(plan)
    launch._check_readable(replace(plan, uid=os.getuid()))
    path.chmod(0o644)
    launch._check_readable(plan)
