"""Output and ends: nothing lost, nothing without bounds, nothing left over."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from urllib.parse import urlsplit

import pytest

from .conftest import MARK, Guest, eventually, running_guest
from .connect_client import Client, Outcome, RpcError, envelope, pid_of, talk, until

pytestmark = pytest.mark.platform

MIB = 1024 * 1024


async def drink(c: Client, script: str) -> tuple[int, int]:
    """Bytes of output and the exit code of a script, without keeping the output."""
    total = 0
    async with c.start("/bin/sh", "-c", script, stdin=False) as stream:
        while (event := await stream.event()) is not None:
            for text in event.get("data", {}).values():
                total += len(base64.b64decode(text))
            end = event.get("end")
    return total, end.get("exitCode", 0)


def test_a_flood_costs_no_memory_and_stops_nobody(guest: Guest) -> None:
    async def work(c: Client) -> None:
        await c.sh("yes | head -c 20000000")
        before = guest.memory_kib()
        peak = before
        async with asyncio.TaskGroup() as tasks:
            flood = tasks.create_task(drink(c, "yes | head -c 200000000"))
            while not flood.done():
                assert (await c.run("true")).code == 0
                peak = max(peak, guest.memory_kib())
        assert flood.result() == (200_000_000, 0)
        assert peak - before < 8 * 1024

    talk(guest, work)


def test_chunks_are_bounded(guest: Guest) -> None:
    async def work(c: Client) -> None:
        assert max((await c.sh("yes | head -c 5000000")).sizes) <= 32768
        assert max((await c.sh("yes | head -c 500000", pty={})).sizes) <= 16384

    talk(guest, work)


def test_many_processes_at_once_keep_their_output(guest: Guest) -> None:
    async def one(c: Client, number: int) -> None:
        done = await c.sh(f"seq 1 2000; echo {number} >&2; exit {number % 100}")
        assert done.stdout == b"".join(b"%d\n" % n for n in range(1, 2001))
        assert done.stderr == b"%d\n" % number
        assert done.code == number % 100

    async def work(c: Client) -> None:
        async with asyncio.TaskGroup() as tasks:
            for number in range(200):
                tasks.create_task(one(c, number))

    talk(guest, work)


def test_nothing_is_left_of_300_processes(guest: Guest) -> None:
    async def some(c: Client) -> None:
        for number in range(10):
            await c.sh("exit 1", stdin=number % 2 == 0)
        await c.sh("exit 1", pty={})

    async def work(c: Client) -> None:
        await some(c)
        before = guest.descriptors()
        for _ in range(3):
            async with asyncio.TaskGroup() as tasks:
                for _ in range(10):
                    tasks.create_task(some(c))
        await c.session.close()
        eventually(lambda: guest.descriptors() <= before, "all descriptors are closed")
        assert guest.children() == []
        assert guest.marked() == set()

    talk(guest, work)


def test_several_streams_get_everything(guest: Guest) -> None:
    async def work(c: Client) -> None:
        async with c.start("cat") as first:
            pid = await pid_of(first)
            selector = {"process": {"pid": pid}}
            async with c.open("Connect", selector) as second, c.open("Connect", selector) as third:
                assert (await pid_of(second), await pid_of(third)) == (pid, pid)
                async with asyncio.TaskGroup() as tasks:
                    readers = [tasks.create_task(stream.rest()) for stream in (first, second, third)]
                    for _ in range(50):
                        await c.send(pid, b"z" * 30_000)
                    await c.call("CloseStdin", selector)
                assert [reader.result().stdout for reader in readers] == [b"z" * 1_500_000] * 3
                assert [reader.result().code for reader in readers] == [0] * 3

    talk(guest, work)


def test_a_late_connect_sees_the_exit(guest: Guest) -> None:
    async def work(c: Client) -> None:
        ended = await c.sh("echo last words; exit 7", tag="late")
        for selector in ({"pid": ended.pid}, {"tag": "late"}):
            async with c.open("Connect", {"process": selector}) as stream:
                seen = await stream.rest()
            assert (seen.pid, seen.code, seen.stdout) == (ended.pid, 7, b"")
        async with c.open("Connect", {"process": {"tag": "late"}}, {"wrenn-replay": "1"}) as stream:
            assert (await stream.rest()).stdout == b"last words\n"
        async with c.open("Connect", {"process": {"pid": 4_000_000_000}}) as stream:
            assert await c.error_of(stream.rest()) == "not_found"

    talk(guest, work)


def test_an_exit_is_forgotten_in_the_end(hasty_guest: Guest) -> None:
    async def gone(c: Client, pid: int) -> bool:
        async with c.open("Connect", {"process": {"pid": pid}}) as stream:
            try:
                return (await stream.rest()).code != 7
            except RpcError as error:
                return error.code == "not_found"

    async def work(c: Client) -> None:
        ended = await c.sh("exit 7")
        while not await gone(c, ended.pid):
            await asyncio.sleep(0.05)

    talk(hasty_guest, work)


def test_a_background_child_does_not_hold_the_end(guest: Guest) -> None:
    async def work(c: Client) -> None:
        done = await c.sh("sleep 1000 & echo started")
        assert (done.stdout, done.code) == (b"started\n", 0)
        assert len(guest.marked()) == 1

    talk(guest, work)


def test_a_background_child_may_go_on_writing(guest: Guest) -> None:
    async def work(c: Client) -> None:
        # Fast enough to fill the pipe many times; it would die of SIGPIPE, or stand still, if nobody read.
        script = "(while [ ! -e $STOP ]; do yes | head -c 100000; done; echo x > $DONE) & echo started"
        folder = (await c.sh("mktemp -d")).stdout.decode().strip()
        envs = {"STOP": f"{folder}/stop", "DONE": f"{folder}/done"}
        done = await c.sh(script, process={"envs": envs})
        assert done.code == 0 and b"started\n" in done.stdout
        assert (
            await c.sh(f"sleep 0.2; touch {folder}/stop; until [ -s {folder}/done ]; do sleep 0.05; done")
        ).code == 0
        await c.sh(f"rm -r {folder}")

    talk(guest, work)


def test_the_deadline_kills_the_group(guest: Guest) -> None:
    async def work(c: Client) -> None:
        headers = {"connect-timeout-ms": "400"}
        with pytest.raises(RpcError, match="deadline_exceeded"):
            await c.sh("echo before; sleep 1000 & sleep 1000", headers=headers)
        eventually(lambda: not guest.marked(), "the group is dead")
        assert await c.call("List", {}) == {}
        assert (await c.sh("echo quick", headers=headers)).stdout == b"quick\n"

    talk(guest, work)


def test_the_deadline_holds_though_the_caller_went(guest: Guest) -> None:
    async def work(c: Client) -> None:
        async with c.start("sleep", "1000", headers={"connect-timeout-ms": "1500"}) as stream:
            pid = await pid_of(stream)
        async with c.open("Connect", {"process": {"pid": pid}}) as again:
            assert (await again.rest()).end == {"exitCode": -1, "status": "signal: killed", "error": "signal: killed"}

    talk(guest, work)


def test_a_caller_that_goes_leaves_the_process_running(guest: Guest) -> None:
    async def work(c: Client) -> None:
        async with c.start("cat", headers={"connect-timeout-ms": "60000"}) as stream:
            pid = await pid_of(stream)
            stream.response.close()
        for _ in range(20):
            assert [p["pid"] for p in (await c.call("List", {}))["processes"]] == [pid]
        async with c.open("Connect", {"process": {"pid": pid}}) as again:
            await pid_of(again)
            await c.send(pid, b"still here")
            await c.call("CloseStdin", {"process": {"pid": pid}})
            assert (await again.rest()).stdout == b"still here"

    talk(guest, work)


def test_output_that_nobody_watches_does_not_stop_the_process(guest: Guest) -> None:
    async def work(c: Client) -> None:
        async with c.start("/bin/sh", "-c", "read x; yes | head -c 5000000; echo THE END") as stream:
            pid = await pid_of(stream)
        await c.send(pid, b"go\n")
        async with c.open("Connect", {"process": {"pid": pid}}) as again:
            assert (await again.rest()).code == 0
        async with c.open("Connect", {"process": {"pid": pid}}, {"wrenn-replay": "1"}) as again:
            tail = (await again.rest()).stdout
            assert tail.endswith(b"THE END\n") and len(tail) <= 64 * 1024

    talk(guest, work)


def stuck_caller(guest: Guest, script: str) -> socket.socket:
    """A caller that asks for a stream and then never reads it."""
    address = urlsplit(guest.url)
    caller = socket.socket()
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    caller.connect((address.hostname, address.port))
    config = {"cmd": "/bin/sh", "args": ["-c", script], "envs": {MARK: guest.mark}}
    body = envelope({"process": config, "tag": "stuck"})
    head = (
        "POST /process.Process/Start HTTP/1.1\r\nhost: x\r\n"
        f"content-type: application/connect+json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    caller.sendall(head.encode() + body)
    return caller


def test_a_stuck_caller_is_cut_and_told(hasty_guest: Guest) -> None:
    async def work(c: Client) -> None:
        with stuck_caller(hasty_guest, "yes | head -c 50000000; echo THE END") as caller:
            while not await c.call("List", {}):
                await asyncio.sleep(0.01)
            # It holds the process up, but not for ever, and others are not held up with it.
            async with c.open("Connect", {"process": {"tag": "stuck"}}) as other:
                seen = await drain_count(other)
            assert seen[1] == 0 and seen[2].endswith(b"THE END\n")
            caller.settimeout(30)
            received = b""
            while b'"aborted"' not in received[-4096:]:
                piece = caller.recv(MIB)
                assert piece, f"the stream ended without the error: {received[-300:]!r}"
                received = received[-4096:] + piece

    talk(hasty_guest, work)


async def drain_count(stream) -> tuple[int, int, bytes]:
    total, tail, code = 0, b"", -1
    while (event := await stream.event()) is not None:
        for text in event.get("data", {}).values():
            data = base64.b64decode(text)
            total, tail = total + len(data), (tail + data)[-100:]
        if "end" in event:
            code = event["end"].get("exitCode", 0)
    return total, code, tail


def test_a_slow_caller_loses_nothing(guest: Guest) -> None:
    async def work(c: Client) -> None:
        async with c.start("/bin/sh", "-c", "seq 1 200000; exit 4", stdin=False) as stream:
            outcome = Outcome()
            while (event := await stream.event()) is not None:
                outcome.add(event)
                await asyncio.sleep(0.02)
        assert outcome.stdout == b"".join(b"%d\n" % n for n in range(1, 200_001))
        assert outcome.code == 4

    talk(guest, work)


def test_a_quiet_stream_is_kept_alive(guest: Guest) -> None:
    async def work(c: Client) -> None:
        headers = {"keepalive-ping-interval": "1"}
        async with c.start("sleep", "1000", headers=headers) as stream:
            pid = await pid_of(stream)
            assert await stream.event() == {"keepalive": {}}
            assert await stream.event() == {"keepalive": {}}
            await c.signal(pid, "SIGNAL_SIGKILL")
            await stream.rest()

    talk(guest, work)


def test_the_start_is_flushed_at_once(guest: Guest) -> None:
    async def work(c: Client) -> None:
        async with c.start("sleep", "1000") as stream:
            pid = await pid_of(stream)  # would wait for ever
            await c.signal(pid, "SIGNAL_SIGKILL")

    talk(guest, work)


def test_leaving_takes_every_process(exec_shim) -> None:
    with running_guest(exec_shim) as guest:

        async def work(c: Client) -> None:
            async with c.start("/bin/sh", "-c", "trap '' TERM HUP; sleep 1000 & echo ready; wait") as stream:
                await until(stream, Outcome(), b"ready")
                await c.sh("sleep 1000 >/dev/null 2>&1 &")
                async with c.start("/bin/bash", "--norc", "-i", pty={}) as terminal:
                    pid = await pid_of(terminal)
                    await c.send(pid, b"sleep 1000\n", "pty")
                    eventually(lambda: len(guest.marked()) == 5, "all run")

        talk(guest, work)
    assert guest.marked() == set()


def test_the_other_event_loop(exec_shim) -> None:
    with running_guest(exec_shim, loop="uvloop") as guest:

        async def work(c: Client) -> None:
            assert (await c.sh("seq 1 100000 | tail -1; exit 2")).code == 2
            assert (await c.sh("stty size", pty={})).pty == b"24 80\r\n"
            assert (await drink(c, "yes | head -c 20000000")) == (20_000_000, 0)

        talk(guest, work)


def test_bad_requests_are_answered(guest: Guest) -> None:
    async def work(c: Client) -> None:
        bodies = ({}, {"process": {}}, {"process": {"cmd": "true"}, "pty": {"size": {"cols": 99999}}})
        for body in bodies:
            async with c.open("Start", body) as stream:
                assert await c.error_of(stream.rest()) == "invalid_argument"
        url = f"{guest.url}/process.Process/List"
        async with c.session.post(url, data=json.dumps({"x": 1}), headers={"content-type": "application/json"}) as r:
            assert (r.status, await r.json()) == (200, {})

    talk(guest, work)
