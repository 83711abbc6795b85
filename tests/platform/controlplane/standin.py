"""A host agent for tests of the control plane: the real protocol over HTTP, with plain host processes as "sandboxes".

It does what it is told, and fails as it is told: see the ``fail``, ``delay_s`` and ``forget`` switches. It never
touches anything outside its own folder but the processes it starts, which die with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import os
import pty
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import uvicorn
from protobuf import Oneof

from tests.platform.controlplane.standin_moments import Moments
from wrenn_sandbox.core.errors import Conflict, Invalid, NotFound, Unavailable, WrennError
from wrenn_sandbox.rpc.errors import to_connect
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb
from wrenn_sandbox.rpc.gen.hostagent.v1.hostagent_connect import HostAgentService, HostAgentServiceASGIApplication
from wrenn_sandbox.rpc.relay import DialFailed, UpgradeRefused, refuse, relay_http, relay_session, relay_websocket

TOKEN = "t" * 32


@dataclass
class Machine:
    """One pretended sandbox."""

    request: pb.CreateSandboxRequest
    status: str = "running"
    reason: str = ""
    reason_slug: str = ""
    progress: str = ""
    host_ip: str = "10.11.0.1"
    stalled: str = ""
    lifetime: pb.Lifetime | None = None
    last_active: float = field(default_factory=time.time)
    #: The newest durable build of its own, and the one its present state descends from.
    build_id: str = ""
    current: str = ""
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    terminals: dict[str, int] = field(default_factory=dict)
    shells: dict[str, int] = field(default_factory=dict)


@dataclass
class StandIn(Moments, HostAgentService):
    """The agent's state and its switches."""

    root: Path
    machines: dict[str, Machine] = field(default_factory=dict)
    #: Durable builds, and who keeps which: sandbox and template ids.
    builds: dict[str, pb.Build] = field(default_factory=dict)
    holds: dict[str, str] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    #: RPC name -> error it answers with.
    fail: dict[str, WrennError] = field(default_factory=dict)
    #: RPC name -> seconds it takes longer.
    delay_s: dict[str, float] = field(default_factory=dict)
    #: Calls about builds that are under way.
    working: int = 0
    typed: list[bytes] = field(default_factory=list)
    uploads_broken: int = 0
    downloads_ended: int = 0
    largest_chunk: int = 0
    break_downloads: bool = False

    # Each RPC begins here.
    async def _begin(self, name: str, sandbox_id: str = "") -> Machine:
        self.calls.append(name)
        await asyncio.sleep(self.delay_s.get(name, 0))
        if name in self.fail:
            raise to_connect(self.fail[name])
        if not sandbox_id:
            return Machine(pb.CreateSandboxRequest())
        machine = self.machines.get(sandbox_id)
        if machine is None:
            raise to_connect(NotFound(f"There is no sandbox {sandbox_id}.", slug="sandbox_not_found"))
        if machine.status != "running":
            raise to_connect(Conflict(f"The sandbox is {machine.status}."))
        machine.last_active = time.time()
        return machine

    async def create_sandbox(self, request: pb.CreateSandboxRequest, _ctx: Any) -> pb.CreateSandboxResponse:
        if request.build_id and request.build_id not in self.builds:
            raise to_connect(NotFound(f"There is no build {request.build_id}.", slug="build_not_found"))
        self.machines[request.sandbox_id] = Machine(
            request,
            status="starting",
            progress="preparing template base",
            lifetime=request.lifetime,
            current=request.build_id,
        )
        try:
            await self._begin("CreateSandbox")
        except asyncio.CancelledError:  # the caller is gone; what was begun is finished
            self.machines[request.sandbox_id].status = "running"
            raise
        except BaseException:
            self.machines[request.sandbox_id].status = "error"
            raise
        if request.sandbox_id not in self.machines:
            raise to_connect(Conflict("The sandbox was destroyed while it was being made."))
        self.machines[request.sandbox_id].status = "running"
        return pb.CreateSandboxResponse(
            sandbox_id=request.sandbox_id,
            status="running",
            host_ip="10.11.0.1",
            vcpus=request.vcpus,
            memory_mb=request.memory_mb,
            phases=[pb.Phase(name="restore", ms=41.5), pb.Phase(name="init", ms=12.0)],
        )

    async def destroy_sandbox(self, request: pb.DestroySandboxRequest, _ctx: Any) -> pb.DestroySandboxResponse:
        await self._begin("DestroySandbox")
        if machine := self.machines.pop(request.sandbox_id, None):
            end(machine)
        self.release(request.sandbox_id)
        return pb.DestroySandboxResponse()

    async def list_sandboxes(self, _request: pb.ListSandboxesRequest, _ctx: Any) -> pb.ListSandboxesResponse:
        await self._begin("ListSandboxes")
        return pb.ListSandboxesResponse(
            sandboxes=[
                pb.SandboxInfo(
                    sandbox_id=sandbox_id,
                    status=machine.status,
                    vcpus=machine.request.vcpus,
                    memory_mb=machine.request.memory_mb,
                    host_ip=machine.host_ip,
                    last_active_at_unix=int(machine.last_active),
                    reason=machine.reason,
                    reason_slug=machine.reason_slug,
                    progress=machine.progress if machine.status == "starting" else "",
                    lifetime=machine.lifetime,
                    build_id=machine.build_id,
                    current_build_id=machine.current,
                    stalled=machine.stalled,
                )
                for sandbox_id, machine in self.machines.items()
            ]
        )

    async def ping_sandbox(self, request: pb.PingSandboxRequest, _ctx: Any) -> pb.PingSandboxResponse:
        await self._begin("PingSandbox", request.sandbox_id)
        return pb.PingSandboxResponse()

    async def set_lifetime(self, request: pb.SetLifetimeRequest, _ctx: Any) -> pb.SetLifetimeResponse:
        machine = await self._begin("SetLifetime", request.sandbox_id)
        machine.lifetime = request.lifetime
        return pb.SetLifetimeResponse()

    async def exec(self, request: pb.ExecRequest, _ctx: Any) -> pb.ExecResponse:
        machine = await self._begin("Exec", request.sandbox_id)
        if request.cmd == ":":  # for measuring: no process at all
            return pb.ExecResponse()
        try:
            process = await asyncio.create_subprocess_exec(
                request.cmd,
                *request.args,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=request.cwd or self.root,
                env=environment(machine, request.envs),
            )
        except FileNotFoundError:
            return pb.ExecResponse(stderr=f"{request.cmd}: not found\n".encode(), exit_code=127)
        try:
            async with asyncio.timeout(request.timeout_sec or 30):
                out, err = await process.communicate(request.stdin)
        except TimeoutError:
            process.kill()
            await process.wait()
            return pb.ExecResponse(stdout=b"so far\n", exit_code=-1, interrupted="command_timeout")
        return pb.ExecResponse(stdout=out, stderr=err, exit_code=process.returncode or 0)

    async def exec_stream(self, request: pb.ExecRequest, _ctx: Any) -> AsyncIterator[pb.ExecStreamResponse]:
        machine = await self._begin("ExecStream", request.sandbox_id)
        process = spawn(self, machine, request, str(len(machine.processes)))
        async for event in events_of(process):
            yield event
        if "ExecStreamBreaks" in self.fail:
            raise to_connect(self.fail["ExecStreamBreaks"])

    async def start_background(self, request: pb.StartBackgroundRequest, _ctx: Any) -> pb.StartBackgroundResponse:
        machine = await self._begin("StartBackground", request.sandbox_id)
        process = spawn(self, machine, request, request.tag)
        return pb.StartBackgroundResponse(pid=process.pid, tag=request.tag)

    async def list_processes(self, request: pb.ListProcessesRequest, _ctx: Any) -> pb.ListProcessesResponse:
        machine = await self._begin("ListProcesses", request.sandbox_id)
        return pb.ListProcessesResponse(
            processes=[
                pb.ProcessEntry(pid=p.pid, tag=tag, cmd=p.args[0], args=list(p.args[1:]))  # type: ignore[index]
                for tag, p in machine.processes.items()
                if p.poll() is None
            ]
        )

    async def kill_process(self, request: pb.KillProcessRequest, _ctx: Any) -> pb.KillProcessResponse:
        machine = await self._begin("KillProcess", request.sandbox_id)
        os.killpg(selected(machine, request.selector).pid, signal.Signals[request.signal or "SIGKILL"])
        return pb.KillProcessResponse()

    async def connect_process(
        self, request: pb.ConnectProcessRequest, _ctx: Any
    ) -> AsyncIterator[pb.ExecStreamResponse]:
        machine = await self._begin("ConnectProcess", request.sandbox_id)
        async for event in events_of(selected(machine, request.selector)):
            yield event

    async def read_file_stream(
        self, request: pb.ReadFileStreamRequest, _ctx: Any
    ) -> AsyncIterator[pb.ReadFileStreamResponse]:
        await self._begin("ReadFileStream", request.sandbox_id)
        path = self.root / request.path.lstrip("/")
        if path.is_dir():
            raise to_connect(Invalid(f"{request.path} is a directory.", slug="not_a_file"))
        if not path.exists():
            raise to_connect(NotFound(f"There is no file {request.path}.", slug="file_not_found"))
        try:
            with path.open("rb") as file:
                while chunk := file.read(64 * 1024):
                    if self.break_downloads:
                        raise to_connect(Unavailable("The guest has gone.", slug="guest_unreachable"))
                    yield pb.ReadFileStreamResponse(chunk=chunk)
        finally:
            self.downloads_ended += 1

    async def write_file_stream(
        self, requests: AsyncIterator[pb.WriteFileStreamRequest], _ctx: Any
    ) -> pb.WriteFileStreamResponse:
        first = await anext(requests)
        meta = first.content.value  # type: ignore[union-attr]
        await self._begin("WriteFileStream", meta.sandbox_id)
        path = self.root / meta.path.lstrip("/")
        if path.is_dir():
            raise to_connect(Invalid(f"{meta.path} is a directory.", slug="not_a_file"))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".part")
        whole = False
        try:
            with temporary.open("wb") as file:
                async for request in requests:
                    self.largest_chunk = max(self.largest_chunk, len(request.content.value))  # type: ignore[union-attr]
                    file.write(request.content.value)  # type: ignore[union-attr]
            temporary.replace(path)
            whole = True
        finally:
            if not whole:
                self.uploads_broken += 1
                temporary.unlink(missing_ok=True)
        return pb.WriteFileStreamResponse()

    async def pty_attach(self, request: pb.PtyAttachRequest, _ctx: Any) -> AsyncIterator[pb.PtyAttachResponse]:
        machine = await self._begin("PtyAttach", request.sandbox_id)
        if not request.cmd:
            if request.tag not in machine.terminals:
                raise to_connect(NotFound(f"There is no terminal {request.tag}.", slug="process_not_found"))
        else:
            pid, master = pty.fork()
            if pid == 0:
                os.execvpe(request.cmd, [request.cmd, *request.args], environment(machine, request.envs))
            machine.terminals[request.tag], machine.shells[request.tag] = master, pid
            yield pb.PtyAttachResponse(event=Oneof("started", pb.PtyStarted(pid=pid, tag=request.tag)))
        loop = asyncio.get_running_loop()
        master = machine.terminals[request.tag]
        while data := await loop.run_in_executor(None, read_quietly, master):
            yield pb.PtyAttachResponse(event=Oneof("output", pb.PtyOutput(data=data)))
        if request.tag not in machine.terminals:
            return  # the machine was destroyed
        os.close(machine.terminals.pop(request.tag))
        _, status = os.waitpid(machine.shells.pop(request.tag), 0)
        ended = pb.PtyExited(exit_code=os.waitstatus_to_exitcode(status))
        yield pb.PtyAttachResponse(event=Oneof("exited", ended))

    async def pty_send_input(self, request: pb.PtySendInputRequest, _ctx: Any) -> pb.PtySendInputResponse:
        machine = await self._begin("PtySendInput", request.sandbox_id)
        self.typed.append(request.data)
        os.write(machine.terminals[request.tag], request.data)
        return pb.PtySendInputResponse()

    async def pty_resize(self, request: pb.PtyResizeRequest, _ctx: Any) -> pb.PtyResizeResponse:
        await self._begin("PtyResize", request.sandbox_id)
        self.typed.append(f"<{request.cols}x{request.rows}>".encode())
        return pb.PtyResizeResponse()

    async def pty_kill(self, request: pb.PtyKillRequest, _ctx: Any) -> pb.PtyKillResponse:
        machine = await self._begin("PtyKill", request.sandbox_id)
        os.write(machine.terminals[request.tag], b"\x04")
        return pb.PtyKillResponse()

    async def get_host(self, _request: pb.GetHostRequest, _ctx: Any) -> pb.GetHostResponse:
        await self._begin("GetHost")
        return pb.GetHostResponse(
            driver="stand-in",
            arch="x86_64",
            cpu_cores=2,
            memory_mb=4096,
            disk_mb=10240,
            templates=[pb.BaseTemplate(name="base", vcpus=1, memory_mb=512, status="ready")],
        )


def end(machine: Machine) -> None:
    """Kill what it started."""
    for process in machine.processes.values():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    for tag in list(machine.terminals):
        os.kill(machine.shells[tag], signal.SIGKILL)
        os.waitpid(machine.shells.pop(tag), 0)
        os.close(machine.terminals.pop(tag))


def environment(machine: Machine, envs: dict[str, str]) -> dict[str, str]:
    """What a process of the machine sees."""
    return {"PATH": os.environ["PATH"], **dict(machine.request.default_env), **dict(envs)}


def spawn(agent: StandIn, machine: Machine, request: Any, tag: str) -> subprocess.Popen[bytes]:
    """Start a process in a group of its own."""
    process = subprocess.Popen(
        [request.cmd, *request.args],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=request.cwd or agent.root,
        env=environment(machine, request.envs),
        start_new_session=True,
    )
    machine.processes[tag] = process
    return process


def selected(machine: Machine, selector: Any) -> subprocess.Popen[bytes]:
    """The process that a selector names."""
    for tag, process in machine.processes.items():
        if selector.value in (tag, process.pid):
            return process
    raise to_connect(NotFound(f"There is no process {selector.value}.", slug="process_not_found"))


async def events_of(process: subprocess.Popen[bytes]) -> AsyncIterator[pb.ExecStreamResponse]:
    """Start, output, end. Its own output is read byte by byte in odd pieces, so that characters get split."""
    loop = asyncio.get_running_loop()
    yield pb.ExecStreamResponse(event=Oneof("start", pb.ExecStreamStart(pid=process.pid)))
    assert process.stdout is not None
    while data := await loop.run_in_executor(None, os.read, process.stdout.fileno(), 5):
        yield pb.ExecStreamResponse(event=Oneof("data", pb.ExecStreamData(output=Oneof("stdout", data))))
    code = await loop.run_in_executor(None, process.wait)
    process.stdout.close()
    yield pb.ExecStreamResponse(event=Oneof("end", pb.ExecStreamEnd(exit_code=code)))


def read_quietly(master: int) -> bytes:
    """A terminal's next output; nothing when its last process has gone (EIO, tty_ioctl(4))."""
    try:
        return os.read(master, 65536)
    except OSError:
        return b""


class Application:
    """Bearer check, the RPCs, and the proxy route, whose upstream is this machine's own loopback."""

    def __init__(self, agent: StandIn, session: aiohttp.ClientSession) -> None:
        self.agent = agent
        self._calls = HostAgentServiceASGIApplication(agent)  # type: ignore[arg-type]
        self._session = session

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        headers = dict(scope["headers"])
        if not hmac.compare_digest(headers.get(b"authorization", b""), f"Bearer {TOKEN}".encode()):
            await refuse(scope, send, 401, b'{"code": "unauthenticated", "message": "token"}')
            return
        if not scope["path"].startswith("/proxy/"):
            await self._calls(scope, receive, send)
            return
        _, _, sandbox_id, port, rest = scope["raw_path"].decode().split("/", 4)
        query = f"?{scope['query_string'].decode()}" if scope["query_string"] else ""
        url = f"http://127.0.0.1:{port}/{rest}{query}"
        relay = relay_http if scope["type"] == "http" else relay_websocket
        try:
            await relay(scope, receive, send, self._session, url, headers_drop={"authorization"})
        except UpgradeRefused as error:
            await refuse(scope, send, error.status, b"{}")
        except DialFailed:
            body = {"sandboxId": sandbox_id, "message": "The sandbox is running but port is not open"}
            await refuse(scope, send, 502, json.dumps(body | {"port": int(port), "code": 502}).encode())


@asynccontextmanager
async def serving(agent: StandIn) -> AsyncIterator[str]:
    """The agent on a free loopback port; yields its URL. All its processes are dead on leaving."""
    async with relay_session() as session:
        config = uvicorn.Config(
            Application(agent, session), host="127.0.0.1", port=0, log_config=None, lifespan="off", access_log=False
        )
        server = uvicorn.Server(config)
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
        async with asyncio.TaskGroup() as group:
            group.create_task(server.serve())
            while not server.started:
                await asyncio.sleep(0.005)
            try:
                yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
            finally:
                for machine in agent.machines.values():
                    end(machine)
                server.force_exit = server.should_exit = True
