"""``wrenn up``: the whole platform on this machine, as two child processes of one supervisor.

::

    wrenn up ──┬── hostagent     (VMMs, network, files; loopback, bearer token)
               └── controlplane  (API, database, proxy)

They talk over loopback exactly as they would between machines. SIGINT or SIGTERM ends both: the control plane first, so
that nothing new arrives; then every sandbox is paused durably, or destroyed with ``--kill``; then the host agent, which
leaves nothing when nothing runs. What could not be paused runs on, and the next ``wrenn up`` takes it over.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from wrenn_sandbox.cli.api import DEFAULT_URL, Api, Credentials, connect
from wrenn_sandbox.cli.children import Child, kept
from wrenn_sandbox.cli.hello import say_hello
from wrenn_sandbox.cli.image import DEFAULT_IMAGES_DIR
from wrenn_sandbox.cli.rest import bring_to_rest
from wrenn_sandbox.core.errors import Conflict, Denied, Invalid, Unavailable, WrennError
from wrenn_sandbox.image.catalog import Catalog

DEFAULT_DATA_DIR = Path("/var/lib/wrenn")
#: A bake of the default template on two slow cores, with a wide margin.
TEMPLATE_LIMIT_S = 300.0


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked of ``wrenn up``."""

    data_dir: Path
    images_dir: Path
    listen: str
    driver: str
    domain: str
    tag: str
    database_url: str = field(repr=False)
    ready_file: Path | None
    hello: bool
    kill: bool = False


def up(
    data_dir: Annotated[Path, typer.Option(envvar="WRENN_DATA_DIR", help="Where everything lives.")] = DEFAULT_DATA_DIR,
    listen: Annotated[str, typer.Option(envvar="WRENN_LISTEN", help="HOST:PORT of the API.")] = "127.0.0.1:8080",
    ready_file: Annotated[Path | None, typer.Option(help="Write a JSON description here once all is ready.")] = None,
    images_dir: Annotated[Path, typer.Option(envvar="WRENN_IMAGES_DIR", help="Guest artefacts.")] = DEFAULT_IMAGES_DIR,
    driver: Annotated[str, typer.Option(envvar="WRENN_DRIVER", help="auto, qemu or fake.")] = "auto",
    domain: Annotated[str, typer.Option(envvar="WRENN_DOMAIN", help="Domain of {port}-{sandbox} names.")] = "localhost",
    database_url: Annotated[str, typer.Option(envvar="WRENN_DATABASE_URL", help="Default: SQLite in data-dir.")] = "",
    tag: Annotated[str, typer.Option(help="Keeps the names of two platforms on one machine apart.")] = "wrenn",
    hello: Annotated[bool, typer.Option(help="Run a program in a sandbox first, and print its output.")] = False,
    kill: Annotated[bool, typer.Option(help="When interrupted, destroy sandboxes instead of pausing them.")] = False,
) -> None:
    """Run the platform until interrupted."""
    database_url = database_url or f"sqlite+aiosqlite:///{data_dir.absolute() / 'wrenn.db'}"
    options = Options(
        data_dir.absolute(), images_dir.absolute(), listen, driver, domain, tag, database_url, ready_file, hello, kill
    )
    if driver != "fake" and os.geteuid() != 0:
        raise Denied(
            "`wrenn up` makes network namespaces and jails: run it as root (sudo), or try --driver fake with a "
            "--data-dir of your own."
        )
    if ":" not in listen:
        raise Invalid("--listen takes HOST:PORT.", slug="invalid_option")
    Catalog(options.images_dir).current()  # without artefacts nothing could ever run
    with _sole_user_of(options.data_dir):
        asyncio.run(_serve(options))


async def _serve(options: Options) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    started = time.monotonic()
    try:
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(_platform(options, started))
            await _either(stop, serving, tasks)
            serving.cancel()
            if stop.is_set():
                _say("stopping")
    except BaseExceptionGroup as group:
        raise _first_cause(group) from group
    finally:
        if options.ready_file:
            options.ready_file.unlink(missing_ok=True)
    _say("stopped")


async def _either(stop: asyncio.Event, serving: asyncio.Task[None], tasks: asyncio.TaskGroup) -> None:
    waiter = tasks.create_task(stop.wait())
    await asyncio.wait({waiter, serving}, return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()


async def _platform(options: Options, started: float) -> None:
    async with AsyncExitStack() as stack:
        agent = await stack.enter_async_context(kept(_host_agent(options), _say))
        token = _token_file(options.data_dir).read_text().strip()
        stack.push_async_callback(bring_to_rest, str(agent["url"]), token, _say, kill=options.kill)
        plane = await stack.enter_async_context(kept(_control_plane(options, str(agent["url"])), _say))
        credentials = Credentials(str(plane["url"]), _read_key(options.data_dir))
        _say(f"{agent['driver']} host agent and control plane up after {time.monotonic() - started:.1f} s")
        async with connect(credentials) as api:
            await _template_ready(api)
            if options.hello:
                await say_hello(api)
        _announce(options, credentials, str(agent["driver"]))
        await asyncio.Event().wait()  # until cancelled, or until a child is given up


def _host_agent(options: Options) -> Child:
    return Child(
        name="host agent",
        module="wrenn_sandbox.hostagent",
        listen="127.0.0.1:0",
        arguments=(
            *("--data-dir", str(options.data_dir), "--images-dir", str(options.images_dir)),
            *("--driver", options.driver, "--token-file", str(_token_file(options.data_dir)), "--tag", options.tag),
        ),
        ready_file=options.data_dir / "run" / "agent.json",
        log_file=options.data_dir / "logs" / "hostagent.log",
        stop_limit_s=70,  # an operation that is under way is let end
    )


def _control_plane(options: Options, agent_url: str) -> Child:
    return Child(
        name="control plane",
        module="wrenn_sandbox.controlplane",
        listen=options.listen,
        arguments=(
            *("--agent-url", agent_url, "--domain", options.domain),
            *("--agent-token-file", str(_token_file(options.data_dir))),
            *("--bootstrap-key-file", str(options.data_dir / "api.key")),
        ),
        ready_file=options.data_dir / "run" / "plane.json",
        log_file=options.data_dir / "logs" / "controlplane.log",
        stop_limit_s=20,
        environment={"WRENN_DATABASE_URL": options.database_url},  # it may hold a password
    )


async def _template_ready(api: Api) -> None:
    """Wait for the default template, saying what is going on; a failed bake is an error at once."""
    said = ""
    try:
        async with asyncio.timeout(TEMPLATE_LIMIT_S):
            while True:
                host = await api.call("GET", "/v1/hosts/current")
                templates = host.get("templates")
                found = templates[0] if isinstance(templates, list) and templates else {}
                status, detail = str(found.get("status", "ready")), str(found.get("detail", ""))
                if status == "ready":
                    return
                if status == "failed":
                    raise Unavailable(f"The base template could not be made: {detail}", slug="template_failed")
                if detail != said:
                    _say(f"base template: {detail or status}")
                    said = detail
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise Unavailable(f"The base template is not ready after {TEMPLATE_LIMIT_S:.0f} s.", slug="template_failed")


def _announce(options: Options, credentials: Credentials, driver: str) -> None:
    env = {"WRENN_BASE_URL": credentials.url, "WRENN_API_KEY": credentials.key}
    description = {
        "api_url": credentials.url,
        "api_key": credentials.key,
        "dashboard_url": f"{credentials.url}/docs",
        "driver": driver,
        "env": env,
    }
    if options.ready_file:
        temporary = options.ready_file.with_name(options.ready_file.name + ".new")
        temporary.unlink(missing_ok=True)
        _write_secret(temporary, json.dumps(description, indent=2))
        temporary.replace(options.ready_file)
    _say(f"serving at {credentials.url} (docs: {credentials.url}/docs), key in {options.data_dir / 'api.key'}")
    if options.data_dir != DEFAULT_DATA_DIR or credentials.url != DEFAULT_URL:
        _say(f"export WRENN_BASE_URL={credentials.url} WRENN_API_KEY=$(cat {options.data_dir / 'api.key'})")
    _say("try: wrenn sandbox create; stop with Ctrl-C")


@contextmanager
def _sole_user_of(data_dir: Path) -> Iterator[None]:
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o711)
    (data_dir / "run").mkdir(exist_ok=True, mode=0o700)
    with os.fdopen(os.open(data_dir / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(f"Another `wrenn up` uses {data_dir}.", slug="data_dir_in_use") from error
        _token_file(data_dir)
        yield


def _token_file(data_dir: Path) -> Path:
    path = data_dir / "agent.token"
    if not path.exists():
        _write_secret(path, secrets.token_hex(32))
    return path


def _write_secret(path: Path, content: str) -> None:
    """Write a new file that its owner alone can read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(content + "\n")


def _read_key(data_dir: Path) -> str:
    return (data_dir / "api.key").read_text().strip()


def _first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        typed = found.subgroup(WrennError)
        found = (typed or found).exceptions[0]
    return found


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # whoever read this has gone: no reason to end
        print(f"wrenn: {text}", file=sys.stderr, flush=True)
