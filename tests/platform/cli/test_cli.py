"""The commands on a platform: what they print where, their exit codes, and one line for every failure."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pty
import signal
import socket
import struct
import subprocess
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.platform.cli.conftest import WRENN, refusal, until, up, wrenn
from tests.running import Platform

pytestmark = pytest.mark.platform

UNKNOWN = "sb-00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Iterator[Platform]:
    with up(tmp_path_factory.mktemp("cli"), images) as platform:
        yield platform


@pytest.fixture(scope="module")
def env(running: Platform) -> dict[str, str]:
    return running.ready["env"]


@pytest.fixture(scope="module")
def sandbox(running: Platform) -> str:
    return str(running.create()["id"])


def test_a_life(env: dict[str, str]) -> None:
    made = wrenn("sandbox", "create", "--json", "--metadata", "who=me", "--env", "A=1", "--timeout", "0", env=env)
    assert (made.returncode, made.stderr) == (0, b"")
    answer = json.loads(made.stdout)
    assert answer["status"] == "running" and answer["metadata"] == {"who": "me"}
    assert wrenn("sandbox", "exec", answer["id"], "--", "sh", "-c", "echo $A", env=env).stdout == b"1\n"
    listed = wrenn("sandbox", "list", env=env)
    assert listed.stdout.split()[0] == b"ID" and answer["id"].encode() in listed.stdout
    killed = wrenn("sandbox", "kill", answer["id"], "--json", env=env)
    assert json.loads(killed.stdout) == {"killed": [answer["id"]]}
    assert answer["id"] not in {item["id"] for item in json.loads(wrenn("sandbox", "list", "--json", env=env).stdout)}


def test_create_prints_nothing_but_the_id(env: dict[str, str]) -> None:
    made = wrenn("sandbox", "create", env=env)
    name = made.stdout.decode().strip()
    assert (made.returncode, made.stdout, made.stderr) == (0, f"{name}\n".encode(), b"") and name.startswith("sb-")
    assert wrenn("sandbox", "kill", name, env=env).returncode == 0


def test_exec_keeps_streams_apart_and_the_exit_code(env: dict[str, str], sandbox: str) -> None:
    done = wrenn("sandbox", "exec", sandbox, "sh", "-c", "echo out; echo err >&2; exit 7", env=env)
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")
    raw = wrenn("sandbox", "exec", sandbox, "printf", r"\377\000", env=env)
    assert raw.stdout == b"\xff\x00"
    as_json = wrenn("sandbox", "exec", "--json", sandbox, "sh", "-c", "exit 3", env=env)
    assert as_json.returncode == 3 and json.loads(as_json.stdout)["exit_code"] == 3
    assert wrenn("sandbox", "exec", "--cwd", "/usr", sandbox, "pwd", env=env).stdout == b"/usr\n"
    missing = wrenn("sandbox", "exec", sandbox, "no-such-program", env=env)
    assert missing.returncode == 127 and b"no-such-program" in missing.stderr


def test_exec_has_a_time_limit(env: dict[str, str], sandbox: str) -> None:
    done = wrenn("sandbox", "exec", "--timeout", "1", sandbox, "sh", "-c", "echo begun; sleep 600", env=env)
    assert done.returncode != 0 and done.stdout == b"begun\n"


def test_copies_both_ways(env: dict[str, str], sandbox: str, tmp_path: Path) -> None:
    content = os.urandom(3 << 20)
    (tmp_path / "a b").write_bytes(content)
    there = tmp_path / "there"
    there.mkdir()
    assert wrenn("sandbox", "cp", tmp_path / "a b", f"{sandbox}:{there}/", env=env).returncode == 0
    assert (there / "a b").read_bytes() == content
    back = tmp_path / "back"
    back.mkdir()
    done = wrenn("sandbox", "cp", f"{sandbox}:{there}/a b", back, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert (back / "a b").read_bytes() == content
    assert wrenn("sandbox", "cp", f"{sandbox}:{there}/a b", "/dev/stdout", env=env).stdout == content
    assert Path("/dev/stdout").is_symlink(), "a device is written to, never replaced"


def test_a_copy_through_a_link_keeps_the_link(env: dict[str, str], sandbox: str, tmp_path: Path) -> None:
    (tmp_path / "new").write_text("new")
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    assert wrenn("sandbox", "cp", f"{sandbox}:{tmp_path}/new", tmp_path / "link", env=env).returncode == 0
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "new"


def test_copies_that_cannot_be(env: dict[str, str], sandbox: str, tmp_path: Path) -> None:
    assert "[not_found]" in refusal(wrenn("sandbox", "cp", f"{sandbox}:/no/such", tmp_path / "x", env=env))
    assert "[invalid_path]" in refusal(wrenn("sandbox", "cp", tmp_path / "none", f"{sandbox}:/tmp/x", env=env))
    nowhere = wrenn("sandbox", "cp", f"{sandbox}:/etc/hostname", tmp_path / "no" / "folder", env=env)
    assert nowhere.returncode == 1 and nowhere.stderr.count(b"\n") == 1, nowhere
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [("exec", UNKNOWN, "true"), ("kill", UNKNOWN), ("cp", f"{UNKNOWN}:/x", "x")])
def test_an_unknown_sandbox(env: dict[str, str], arguments: tuple[str, ...], tmp_path: Path) -> None:
    said = refusal(wrenn("sandbox", *arguments, env=env, cwd=tmp_path))
    assert "not_found]" in said
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_key(env: dict[str, str]) -> None:
    for key in ("wrn_" + "0" * 32, "nonsense", "two\nlines"):
        refusal(wrenn("sandbox", "list", env=env | {"WRENN_API_KEY": key}))


def test_nothing_at_the_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for command in (("list",), ("exec", UNKNOWN, "true"), ("kill", UNKNOWN)):
        env = {"WRENN_API_KEY": "wrn_x", "WRENN_BASE_URL": f"http://127.0.0.1:{port}"}
        said = refusal(wrenn("sandbox", *command, env=env))
        assert f"127.0.0.1:{port}" in said and "wrenn up" in said


def test_something_else_at_the_address() -> None:
    for url in ("nonsense", "ftp://127.0.0.1/", "http://[::1"):
        assert "[invalid_address]" in refusal(
            wrenn("sandbox", "list", env={"WRENN_API_KEY": "wrn_x", "WRENN_BASE_URL": url})
        )


def test_wrong_usage_is_2(env: dict[str, str]) -> None:
    for arguments in (("sandbox", "frobnicate"), ("sandbox", "create", "--vcpus", "many"), ("sandbox", "kill")):
        done = wrenn(*arguments, env=env)
        assert done.returncode == 2 and done.stdout == b"" and b"Traceback" not in done.stderr
    assert "[invalid_request]" in refusal(wrenn("sandbox", "create", "--env", "novalue", env=env))


def test_ctrl_c_is_130_without_a_traceback(env: dict[str, str], sandbox: str) -> None:
    command = [*WRENN, "sandbox", "exec", sandbox, "sh", "-c", "touch /tmp/begun-$0; sleep 600", str(os.getpid())]
    mark = Path(f"/tmp/begun-{os.getpid()}")
    with subprocess.Popen(command, env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            until(mark.exists)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
            mark.unlink(missing_ok=True)
    assert (process.returncode, out) == (130, b"") and b"Traceback" not in err


@pytest.mark.parametrize("size", [10, 1 << 20])
def test_a_reader_that_has_gone(env: dict[str, str], sandbox: str, size: int) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        command = [*WRENN, "sandbox", "exec", sandbox, "head", "-c", str(size), "/dev/zero"]
        done = subprocess.run(command, env=os.environ | env, stdout=writing, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_version_and_image(tmp_path: Path) -> None:
    said = wrenn("version")
    assert said.returncode == 0 and said.stdout.strip()
    assert "[artefacts_missing]" in refusal(wrenn("image", "show", "--images-dir", tmp_path))


@dataclass
class Terminal:
    """A shell in a real terminal of ours."""

    process: subprocess.Popen[bytes]
    fd: int
    seen: bytes = b""

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def until(self, wanted: bytes) -> None:
        def found() -> bool:
            try:
                self.seen += os.read(self.fd, 1 << 16)
            except BlockingIOError:
                pass
            except OSError as error:
                assert error.errno == errno.EIO  # the other side has closed
            assert wanted in self.seen or self.process.poll() is None, self.seen
            return wanted in self.seen

        until(found, limit_s=20)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process.send_signal(signal.SIGWINCH)

    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.fd)[3] & termios.ICANON


@contextmanager
def shell(sandbox: object, env: dict[str, str]) -> Iterator[Terminal]:
    """`wrenn sandbox shell` in a terminal of 31 rows and 97 columns."""
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 31, 97, 0, 0))
    outer = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}
    process = subprocess.Popen(
        [*WRENN, "sandbox", "shell", str(sandbox)], stdin=theirs, stdout=theirs, stderr=theirs, env=outer | env
    )
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(theirs)
        os.close(ours)


def test_a_shell(env: dict[str, str], sandbox: str) -> None:
    with shell(sandbox, env) as terminal:
        until(terminal.is_raw)
        terminal.type("echo si''ze $(stty size)\n")
        terminal.until(b"size 31 97")
        terminal.resize(20, 50)
        terminal.type("until [ \"$(stty size)\" = '20 50' ]; do sleep 0.1; done; echo re''sized\n")
        terminal.until(b"resized")
        terminal.type("echo be''gun; sleep 600\n")
        terminal.until(b"begun")
        terminal.type("\x03")  # Ctrl-C is for the sandbox
        terminal.until(b"^C")
        terminal.type("exit 7\n")
        assert terminal.process.wait(30) == 7, terminal.seen
        assert not terminal.is_raw(), "the terminal is as it was"


def test_a_shell_in_no_sandbox(env: dict[str, str]) -> None:
    with shell(UNKNOWN, env) as terminal:
        terminal.until(b"]\r\n")
        assert terminal.process.wait(30) == 1
        assert terminal.seen.startswith(b"wrenn: ") and terminal.seen.count(b"\n") == 1, terminal.seen


def test_a_shell_without_a_terminal(env: dict[str, str], sandbox: str) -> None:
    for source in ({"input": b"exit\n"}, {"stdin": subprocess.DEVNULL}):
        assert "[not_a_terminal]" in refusal(wrenn("sandbox", "shell", sandbox, env=env, **source))


def test_a_sandbox_killed_under_its_shell(running: Platform, env: dict[str, str]) -> None:
    other = running.create()["id"]
    with shell(other, env) as terminal:
        until(terminal.is_raw)
        terminal.type("echo rea''dy\n")
        terminal.until(b"ready")
        running.kill(other)
        assert terminal.process.wait(30) != 0
        assert not terminal.is_raw() and b"Traceback" not in terminal.seen
