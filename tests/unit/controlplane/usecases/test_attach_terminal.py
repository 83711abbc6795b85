from __future__ import annotations

import asyncio

from tests.unit.controlplane.usecases.test_find_sandboxes import made
from wrenn_sandbox.controlplane.usecases.attach_terminal import Shell, Size, attach, open_terminal


def test_a_new_terminal_has_a_new_tag_and_what_was_asked(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            terminal = await open_terminal(w.platform, w.team, row.id)
            assert terminal.tag.startswith("pty-") and len(terminal.tag) == 12
            shell = Shell("/bin/sh", ("-l",), {"A": "1"}, "/tmp", "root", Size(100, 30))
            assert [event async for event in attach(terminal, shell)] == []
            (sent,) = w.agent.requests("PtyAttach")
            assert (sent.tag, sent.cmd, list(sent.args), sent.cols, sent.rows) == (
                terminal.tag,
                "/bin/sh",
                ["-l"],
                100,
                30,
            )
            assert (dict(sent.envs), sent.cwd, sent.user) == ({"A": "1"}, "/tmp", "root")

    asyncio.run(main())


def test_coming_back_sends_no_command(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            terminal = await open_terminal(w.platform, w.team, row.id, "pty-mine")
            assert [event async for event in attach(terminal, None)] == []
            await terminal.type(b"x")
            await terminal.resize(Size(1, 2))
            await terminal.kill()
            names = ("PtyAttach", "PtySendInput", "PtyResize", "PtyKill")
            sent = [w.agent.requests(name)[0] for name in names]
            assert {request.tag for request in sent} == {"pty-mine"} and sent[0].cmd == ""
            assert sent[1].data == b"x" and (sent[2].cols, sent[2].rows) == (1, 2)

    asyncio.run(main())
