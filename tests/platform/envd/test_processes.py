"""What clients rely on, with real processes through a real server."""

from __future__ import annotations

import asyncio
import base64
import os
import pwd

import pytest

from .conftest import Guest, eventually
from .connect_client import Client, Outcome, RpcError, Stream, pid_of, talk, until

pytestmark = pytest.mark.platform


def test_output_and_exit_code(guest: Guest) -> None:
    async def work(c: Client) -> None:
        done = await c.sh("echo out; echo err >&2; exit 3")
        assert (done.stdout, done.stderr) == (b"out\n", b"err\n")
        assert done.end == {"exitCode": 3, "exited": True, "status": "exit status 3", "error": "exit status 3"}
        fine = await c.run("/bin/true")
        assert fine.end == {"exited": True, "status": "exit status 0"}

    talk(guest, work)


def test_environment_is_built_from_nothing(guest: Guest) -> None:
    async def work(c: Client) -> None:
        done = await c.run("env", process={"envs": {"MINE": "1=2", "SHADOWED": "request"}})
        envs = dict(line.split("=", 1) for line in done.stdout.decode().splitlines())
        root = pwd.getpwuid(0)
        assert envs.pop("WRENN_TEST_MARK") == guest.mark
        assert envs == {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": root.pw_dir,
            "USER": "root",
            "LOGNAME": "root",
            "SHELL": root.pw_shell,
            "WRENN_SANDBOX": "false",
            "FROM_INIT": "yes",
            "SHADOWED": "request",
            "MINE": "1=2",
        }

    talk(guest, work)


def test_only_three_descriptors_and_no_blocked_or_ignored_signal_reach_the_program(guest: Guest) -> None:
    async def work(c: Client) -> None:
        done = await c.sh("ls /proc/self/fd | wc -l; grep -E 'SigBlk|SigIgn' /proc/self/status")
        assert done.stdout.split() == [b"4", b"SigBlk:", b"0" * 16, b"SigIgn:", b"0" * 16]  # the fourth is ls's own

    talk(guest, work)


def test_working_directory(guest: Guest) -> None:
    async def work(c: Client) -> None:
        assert (await c.run("pwd")).stdout == pwd.getpwuid(0).pw_dir.encode() + b"\n"
        assert (await c.run("pwd", process={"cwd": "/usr/../tmp"})).stdout == b"/tmp\n"
        assert await c.error_of(c.run("pwd", process={"cwd": "/does/not/exist"})) == "invalid_argument"
        assert await c.error_of(c.run("pwd", process={"cwd": "/etc/passwd"})) == "invalid_argument"
        assert await c.error_of(c.run("pwd", process={"cwd": "/tmp\0"})) == "invalid_argument"

    talk(guest, work)


def test_a_command_that_cannot_run_is_an_exit_code(guest: Guest) -> None:
    async def work(c: Client) -> None:
        missing = await c.run("no-such-command")
        assert (missing.code, missing.stderr) == (127, b"no-such-command: command not found\n")
        assert (await c.run("/no/such/file")).code == 127
        assert (await c.run("/etc/passwd")).code == 126
        assert await c.error_of(c.run("")) == "invalid_argument"
        assert await c.error_of(c.run("true", process={"envs": {"A=B": "x"}})) == "invalid_argument"
        assert await c.error_of(c.run("echo", "a\0b")) == "invalid_argument"
        assert await c.error_of(c.run("true", "x" * 3_000_000)) == "invalid_argument"

    talk(guest, work)


def test_users(guest: Guest) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    nobody = pwd.getpwnam("nobody")

    def basic(name: str) -> dict[str, str]:
        return {"Authorization": "Basic " + base64.b64encode(f"{name}:".encode()).decode()}

    async def work(c: Client) -> None:
        done = await c.sh("id -u; id -g; id -G; echo $USER", headers=basic("nobody"), process={"cwd": "/"})
        assert done.stdout.split() == [b"%d" % nobody.pw_uid, b"%d" % nobody.pw_gid, b"%d" % nobody.pw_gid, b"nobody"]
        denied = await c.run("true", headers=basic("nobody"), process={"cwd": "/root"})
        assert (denied.code, denied.stderr) == (126, b"/root: Permission denied\n")
        with pytest.raises(RpcError, match="unauthenticated: invalid username: 'who-is-this'"):
            await c.run("true", headers=basic("who-is-this"))

    talk(guest, work)


def test_death_by_signal(guest: Guest) -> None:
    async def work(c: Client) -> None:
        killed = await c.sh("kill -9 $$")
        assert killed.end == {"exitCode": -1, "status": "signal: killed", "error": "signal: killed"}
        async with c.start("sleep", "1000") as stream:
            pid = await pid_of(stream)
            await c.signal(pid, "SIGNAL_SIGTERM")
            ended = await stream.rest()
        assert ended.end == {"exitCode": -1, "status": "signal: terminated", "error": "signal: terminated"}
        assert await c.error_of(c.signal(pid, "SIGNAL_SIGKILL")) == "not_found"
        assert await c.error_of(c.signal(4_000_000_000, "SIGNAL_SIGKILL")) == "not_found"

    talk(guest, work)


def test_other_signals_have_names_too(guest: Guest) -> None:
    async def work(c: Client) -> None:
        script = "trap 'echo caught; exit 6' INT; echo ready; while :; do sleep 0.01; done"
        async with c.start("/bin/sh", "-c", script) as s:
            pid = await pid_of(s)
            seen = Outcome()
            await until(s, seen, b"ready")
            assert await c.error_of(c.signal(pid, "SIGNAL_UNSPECIFIED")) == "invalid_argument"
            await c.signal(pid, "SIGNAL_SIGINT")
            assert (await s.rest(seen)).code == 6
            assert seen.stdout == b"ready\ncaught\n"

    talk(guest, work)


def test_a_signal_takes_the_whole_family(guest: Guest) -> None:
    async def work(c: Client) -> None:
        # A child of the shell, and one with a process group of its own.
        script = "sleep 1000 & set -m; sleep 1000 & echo ready; wait"
        async with c.start("/bin/bash", "-c", script) as stream:
            pid = await pid_of(stream)
            await until(stream, Outcome(), b"ready")
            assert len(guest.marked()) == 3
            await c.signal(pid, "SIGNAL_SIGKILL")
            assert (await stream.rest()).code == -1
        eventually(lambda: not guest.marked(), "the children are dead")

    talk(guest, work)


def test_list_tags_and_selectors(guest: Guest) -> None:
    async def work(c: Client) -> None:
        assert await c.call("List", {}) == {}
        async with c.start("sleep", "1000", tag="job", process={"cwd": "/"}) as stream:
            pid = await pid_of(stream)
            (info,) = (await c.call("List", {}))["processes"]
            assert (info["pid"], info["tag"]) == (pid, "job")
            assert (info["config"]["cmd"], info["config"]["args"], info["config"]["cwd"]) == ("sleep", ["1000"], "/")
            assert await c.error_of(c.run("true", tag="job")) == "already_exists"
            assert await c.error_of(c.call("SendSignal", {"process": {}})) == "invalid_argument"
            await c.call("SendSignal", {"process": {"tag": "job"}, "signal": "SIGNAL_SIGKILL"})
            await stream.rest()
        assert await c.call("List", {}) == {}
        assert (await c.run("true", tag="job")).code == 0
        assert await c.error_of(c.call("CloseStdin", {"process": {"tag": "other"}})) == "not_found"

    talk(guest, work)


def test_stdin(guest: Guest) -> None:
    async def work(c: Client) -> None:
        assert (await c.run("cat")).stdout == b""  # /dev/null
        async with c.start("cat") as stream:
            pid = await pid_of(stream)
            for number in range(50):
                await c.send(pid, b"%d\n" % number)
            assert await c.error_of(c.send(pid, b"x", "pty")) == "invalid_argument"
            await c.call("CloseStdin", {"process": {"pid": pid}})
            done = await stream.rest()
            assert done.stdout == b"".join(b"%d\n" % n for n in range(50))
        async with c.start("sleep", "1000") as stream:
            pid = await pid_of(stream)
            await c.call("CloseStdin", {"process": {"pid": pid}})
            assert await c.error_of(c.send(pid, b"x")) == "internal"
            await c.signal(pid, "SIGNAL_SIGKILL")
            await stream.rest()
            assert await c.error_of(c.send(pid, b"x")) == "not_found"
        async with c.start("sleep", "1000", stdin=False) as stream:
            pid = await pid_of(stream)
            assert await c.error_of(c.send(pid, b"x")) == "internal"
            await c.signal(pid, "SIGNAL_SIGKILL")

    talk(guest, work)


def test_input_waits_for_its_reader_and_fails_when_it_dies(guest: Guest) -> None:
    async def work(c: Client) -> None:
        async with c.start("sleep", "1000") as stream:
            pid = await pid_of(stream)
            async with asyncio.TaskGroup() as tasks:
                waiting = tasks.create_task(c.error_of(c.send(pid, b"x" * 1_000_000)))
                for _ in range(20):
                    assert await c.call("List", {})  # the service goes on meanwhile
                assert not waiting.done()
                await c.signal(pid, "SIGNAL_SIGKILL")
            assert waiting.result() == "internal"

    talk(guest, work)


def test_stream_input_in_order_and_whole(guest: Guest) -> None:
    pieces = [bytes([n % 256]) * 10_000 for n in range(200)]

    async def work(c: Client) -> None:
        async with c.start("cat") as stream:
            pid = await pid_of(stream)

            async def body():
                from .connect_client import envelope

                yield envelope({"start": {"process": {"pid": pid}}})
                yield envelope({"keepalive": {}})
                for piece in pieces:
                    yield envelope({"data": {"input": {"stdin": base64.b64encode(piece).decode()}}})

            async def feed() -> None:
                headers = {"content-type": "application/connect+json"}
                async with c.session.post(
                    f"{guest.url}/process.Process/StreamInput", data=body(), headers=headers
                ) as response:
                    assert await Stream(response).response.read() == b"\0\0\0\0\2{}\2\0\0\0\2{}"
                await c.call("CloseStdin", {"process": {"pid": pid}})

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(feed())
                done = await stream.rest()
            assert done.stdout == b"".join(pieces)

    talk(guest, work)


def test_terminal(guest: Guest) -> None:
    size = {"size": {"cols": 101, "rows": 33}}

    async def work(c: Client) -> None:
        async with c.start("/bin/bash", "--norc", "-i", pty=size, process={"envs": {"TERM": "dumb"}}) as stream:
            pid = await pid_of(stream)
            seen = Outcome()
            await c.send(pid, b"stty size; tty; echo $((6*7))done\n", "pty")
            await until(stream, seen, b"42done")
            assert b"33 101" in seen.pty and b"/dev/pts/" in seen.pty
            await c.call("Update", {"process": {"pid": pid}, "pty": {"size": {"cols": 77, "rows": 20}}})
            await c.send(pid, b"stty size; echo $((7*7))done\n", "pty")
            await until(stream, seen, b"49done")
            assert b"20 77" in seen.pty
            assert await c.error_of(c.send(pid, b"x")) == "invalid_argument"
            assert await c.error_of(c.call("CloseStdin", {"process": {"pid": pid}})) == "invalid_argument"
            too_big = {"process": {"pid": pid}, "pty": {"size": {"cols": 70_000, "rows": 1}}}
            assert await c.error_of(c.call("Update", too_big)) == "invalid_argument"
            await c.send(pid, b"exit 5\n", "pty")
            assert (await stream.rest(seen)).code == 5
            assert seen.stdout + seen.stderr == b"" and max(seen.sizes) <= 16384

    talk(guest, work)


def test_terminal_controls_its_jobs(guest: Guest) -> None:
    async def work(c: Client) -> None:
        async with c.start("/bin/bash", "--norc", "-i", pty={}) as stream:
            pid = await pid_of(stream)
            seen = Outcome()
            await c.send(pid, b"stty size; sleep 1000\n", "pty")
            await until(stream, seen, b"24 80")
            eventually(lambda: len(guest.marked()) == 2, "sleep runs")
            await c.send(pid, b"\x03", "pty")
            eventually(lambda: len(guest.marked()) == 1, "Ctrl-C ended it")
            await c.send(pid, b"sleep 1000\n", "pty")
            eventually(lambda: len(guest.marked()) == 2, "sleep runs again")
            await c.signal(pid, "SIGNAL_SIGKILL")
            assert (await stream.rest(seen)).code == -1
        eventually(lambda: not guest.marked(), "the foreground died with the shell")

    talk(guest, work)


def test_all_output_of_a_terminal_comes_before_its_end(guest: Guest) -> None:
    async def work(c: Client) -> None:
        for _ in range(20):
            done = await c.sh("seq 1 3000; exit 9", pty={})
            assert done.pty.replace(b"\r\n", b"\n") == b"".join(b"%d\n" % n for n in range(1, 3001))
            assert done.code == 9

    talk(guest, work)


def test_the_protobuf_codec(guest: Guest) -> None:
    from wrenn_sandbox.rpc.gen.envd import process_pb as wire

    async def work(c: Client) -> None:
        request = wire.StartRequest(process=wire.ProcessConfig(cmd="/bin/sh", args=["-c", "echo hi; exit 2"]))
        body = request.to_binary()
        framed = b"\0" + len(body).to_bytes(4, "big") + body
        headers = {"content-type": "application/connect+proto"}
        async with c.session.post(f"{guest.url}/process.Process/Start", data=framed, headers=headers) as response:
            raw = await response.read()
        events = []
        while raw[0] == 0:
            size = int.from_bytes(raw[1:5], "big")
            events.append(wire.StartResponse.from_binary(raw[5 : 5 + size]).event)
            raw = raw[5 + size :]
        assert [event.event.field for event in events] == ["start", "data", "end"]
        assert events[1].event.value.output.value == b"hi\n"
        assert events[2].event.value.exit_code == 2

    talk(guest, work)
