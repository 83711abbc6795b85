"""The shim itself: guest/exec-shim.c, compiled and run."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.platform

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def run(shim: Path, *words: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([shim, *words], check=False, capture_output=True, text=True, timeout=30, **options)


def test_it_is_static(exec_shim: Path) -> None:
    image = exec_shim.read_bytes()  # elf(5)
    (offset,) = struct.unpack_from("<Q", image, 0x20)
    size, count = struct.unpack_from("<HH", image, 0x36)
    kinds = {struct.unpack_from("<I", image, offset + number * size)[0] for number in range(count)}
    pt_load, pt_interp = 1, 3
    assert pt_load in kinds and pt_interp not in kinds


def test_it_becomes_the_program_in_its_environment(exec_shim: Path) -> None:
    done = run(
        exec_shim, "-d", "/", "--", "sh", "-c", "echo $0 $1 $A; pwd; exit 4", "-u", "x", env={"PATH": "/bin", "A": "b"}
    )
    assert (done.stdout, done.stderr, done.returncode) == ("-u x b\n/\n", "", 4)


def test_path_of_the_program_counts(exec_shim: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("#!/bin/sh\necho found\n")
    (tmp_path / "mine").chmod(0o755)
    assert run(exec_shim, "mine", env={"PATH": f"/nowhere:{tmp_path}"}).stdout == "found\n"
    assert run(exec_shim, "mine", env={"PATH": "/nowhere"}).returncode == 127


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["no-such"], 127, "no-such: command not found\n"),
        (["/no/such"], 127, "/no/such: No such file or directory\n"),
        (["/etc/passwd/x"], 127, "/etc/passwd/x: Not a directory\n"),
        (["/etc"], 126, "/etc: Permission denied\n"),
        (["-d", "/no/such", "--", "true"], 126, "/no/such: No such file or directory\n"),
        (["-c", "/no/such", "--", "true"], 125, "/no/such: No such file or directory\n"),
        (["-n", "many", "--", "true"], 125, "many: not a number\n"),
        ([], 125, "exec-shim: no command given\n"),
    ],
)
def test_what_it_cannot_do(exec_shim: Path, words: list[str], code: int, text: str) -> None:
    done = run(exec_shim, *words)
    assert (done.returncode, done.stderr) == (code, text)


def test_the_program_leads_a_session_and_inherits_nothing(exec_shim: Path) -> None:
    def spoil() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGHUP})

    script = "ls /proc/self/fd | wc -l; grep -E 'SigBlk|SigIgn' /proc/self/status; cut -d' ' -f1,5,6 /proc/$$/stat"
    with open(os.devnull) as extra:
        done = run(exec_shim, "sh", "-c", script, pass_fds=[extra.fileno()], preexec_fn=spoil)
    count, _, blocked, _, ignored, pid, group, session = done.stdout.split()
    assert (count, int(blocked, 16), int(ignored, 16)) == ("4", 0, 0)  # the fourth is ls's own
    assert pid == group == session


@as_root
def test_user_groups_limits_and_priority(exec_shim: Path) -> None:
    asked = ["-u", "1234", "-g", "2345", "-G", "2345,27,4", "-o", "77", "-n", "3", "-f", "512"]
    script = "id -u; id -g; id -G; cat /proc/self/oom_score_adj; nice; ulimit -Sn"
    assert run(exec_shim, *asked, "--", "sh", "-c", script).stdout.split("\n")[:-1] == [
        "1234",
        "2345",
        "2345 4 27",
        "77",
        "3",
        "512",
    ]
    kept = run(exec_shim, "-u", "1234", "-g", "1234", "-G", "1234", "--", "grep", "Cap", "/proc/self/status").stdout
    assert "CapEff:\t0000000000000000" in kept and "CapPrm:\t0000000000000000" in kept


@as_root
def test_without_root_what_needs_none_works_and_the_rest_says_so(exec_shim: Path) -> None:
    nobody = ["-u", "65534", "-g", "65534", "-G", "65534", "--", str(exec_shim)]
    assert run(exec_shim, *nobody, "-d", "/", "--", "id", "-u").stdout == "65534\n"
    refused = run(exec_shim, *nobody, "-u", "0", "--", "id", "-u")
    assert (refused.returncode, refused.stdout, refused.stderr) == (125, "", "setresuid: Operation not permitted\n")


def test_it_joins_a_control_group(exec_shim: Path, tmp_path: Path) -> None:
    procs = tmp_path / "cgroup.procs"
    procs.touch()
    assert run(exec_shim, "-c", str(procs), "--", "true").returncode == 0
    assert procs.read_text() == "0"


def test_controlling_terminal(exec_shim: Path) -> None:
    ours, theirs = os.openpty()
    try:
        code = subprocess.run(
            [exec_shim, "-t", "--", "sh", "-c", "exec 3</dev/tty && test -t 3"], check=False, stdin=theirs, timeout=30
        ).returncode
        assert code == 0
        assert run(exec_shim, "-t", "--", "true", stdin=subprocess.DEVNULL).returncode == 125
    finally:
        os.close(ours)
        os.close(theirs)
