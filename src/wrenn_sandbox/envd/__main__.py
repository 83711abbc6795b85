"""``python -m wrenn_sandbox.envd``: the daemon inside every sandbox."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import cast

from wrenn_sandbox.envd.app import Application, Parts
from wrenn_sandbox.envd.cgroups import Group
from wrenn_sandbox.envd.context import GuestContext
from wrenn_sandbox.envd.exercise import exercise
from wrenn_sandbox.envd.files import FileAccess
from wrenn_sandbox.envd.filesystem_service import FilesystemService
from wrenn_sandbox.envd.http import Asgi
from wrenn_sandbox.envd.init import NO_DUTIES, Duties, Initializer
from wrenn_sandbox.envd.ports.child import Child
from wrenn_sandbox.envd.ports.forward import Forwarder
from wrenn_sandbox.envd.ports.scan import Scanner
from wrenn_sandbox.envd.ports.subsystem import NoPorts, PortSubsystem
from wrenn_sandbox.envd.process_service import ProcessService
from wrenn_sandbox.envd.processes import ProcessTable
from wrenn_sandbox.envd.rights import FileThreads
from wrenn_sandbox.envd.server import Server
from wrenn_sandbox.envd.users import initial_default_user
from wrenn_sandbox.rpc.gen.envd.filesystem_connect import FilesystemASGIApplication
from wrenn_sandbox.rpc.gen.envd.process_connect import Process, ProcessASGIApplication

PORT = 49983
TOOLS_DIR = Path("/run/wrenn/tools")
#: The address of every guest, see wrenn_sandbox.core.slots.
GUEST_ADDRESS = "169.254.0.21"


def options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="envd", description="The daemon inside every sandbox.")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on")
    parser.add_argument("--port", type=int, default=PORT, help="port to listen on; 0 for any free one")
    parser.add_argument("--not-a-guest", action="store_true", help="leave this machine's clock, ids and entropy alone")
    parser.add_argument("--forward-address", help=f"where loopback ports are made reachable (guest: {GUEST_ADDRESS})")
    parser.add_argument("--tools-dir", type=Path, help=f"where the tools disk is mounted (guest: {TOOLS_DIR})")
    parser.add_argument("--ready-file", type=Path, help="write the port there, in decimal, once requests are served")
    parser.add_argument(
        "--exercise", action=argparse.BooleanOptionalAction, help="run every hot route once first (default: in a guest)"
    )
    return parser.parse_args(argv)


def build(given: argparse.Namespace) -> Application:
    """Put the daemon together."""
    is_guest = not given.not_a_guest
    context = GuestContext(
        default_user=initial_default_user(),
        is_guest=is_guest,
        tools_dir=given.tools_dir or (TOOLS_DIR if is_guest and TOOLS_DIR.exists() else None),
    )
    table = ProcessTable(context)
    address = given.forward_address or (GUEST_ADDRESS if is_guest else "")
    own_ports: set[int] = set()
    ports = port_subsystem(context, table, address, own_ports) if address else NoPorts()
    # mypy misses ``desc``, a class method of the generated protocol that no service needs.
    processes = ProcessASGIApplication(cast(Process, ProcessService(context, table)))
    files = FileAccess(context, FileThreads())
    filesystem = FilesystemASGIApplication(FilesystemService(files))
    return Application(
        Parts(
            context=context,
            ports=ports,
            initializer=Initializer(context, ports, Duties() if is_guest else NO_DUTIES),
            files=files,
            services={"process.Process": cast(Asgi, processes), "filesystem.Filesystem": cast(Asgi, filesystem)},
            contexts=(table, ports),
            own_ports=own_ports,
        )
    )


def port_subsystem(context: GuestContext, table: ProcessTable, address: str, own_ports: set[int]) -> PortSubsystem:
    """The port subsystem that forwards from ``address``."""
    tools = context.tools_dir / "bin" / "socat" if context.tools_dir is not None else None
    socat = str(tools) if tools is not None and tools.exists() else "socat"
    return PortSubsystem(
        partial(Scanner, context.log, possible=partial(context.activity.possible, table.busy)),
        partial(Forwarder, socat, address, own_ports, context.log, partial(start_socat, context)),
        context.log,
    )


def start_socat(context: GuestContext, argv: list[str]) -> Child:
    """Start a forwarder in its control group. Raises OSError."""
    child = Child.start(argv)
    procs = context.cgroups.procs(Group.SOCATS) if context.cgroups is not None else None
    if procs is not None:
        try:
            procs.write_text(str(child.pid), encoding="ascii")
        except OSError as error:
            context.log.warning("socat stays outside its control group: %s", error)
    return child


async def serve(given: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT."""
    application = build(given)
    server = Server(application, given.host, given.port)
    with_exercise = given.exercise if given.exercise is not None else not given.not_a_guest
    async with asyncio.TaskGroup() as group:
        group.create_task(server.serve())
        await server.listening()
        if not server.started:  # it says why itself, and ends this group
            return
        application.parts.own_ports.add(server.port)
        log = application.parts.context.log
        if with_exercise:
            await exercise(application, server.port, log)
        application.open_gate()
        log.info("serving on %s:%d", given.host, server.port)
        if given.ready_file is not None:
            given.ready_file.write_text(f"{server.port}\n", encoding="ascii")
    application.parts.files.threads.close()


def main() -> None:
    """Run the daemon."""
    given = options()
    logging.basicConfig(level=logging.INFO, format="envd: %(message)s", stream=sys.stderr)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    os.umask(0o022)
    asyncio.run(serve(given))


if __name__ == "__main__":
    main()
