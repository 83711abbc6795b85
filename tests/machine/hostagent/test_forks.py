"""Three forks read 32 bytes of /dev/urandom as their first command: all differ, and without the reseed they do not."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from tests.leaks import Footprint
from tests.machine.hostagent.restores import Partly, output
from tests.running import IMAGES_DIR
from wrenn_sandbox.core.ids import SandboxId
from wrenn_sandbox.core.spec import DEFAULT_SHAPE, Lifetime, NetworkPolicy, SandboxSpec
from wrenn_sandbox.hostagent.agent import assemble
from wrenn_sandbox.hostagent.guest import Guest, Identity
from wrenn_sandbox.hostagent.moments import Moments
from wrenn_sandbox.hostagent.platforms import open_guest, open_platform
from wrenn_sandbox.hostagent.registry import Registry
from wrenn_sandbox.hostagent.request import Request
from wrenn_sandbox.hostagent.settings import Settings

TAG = "wtk"
TOKEN = "of-the-agent-of-this-test"
#: Without the reseed two siblings read the same unless one of them happened to use the generator once more before.
ROUNDS = 5


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    before = Footprint.take().of(TAG)
    yield
    assert Footprint.take().of(TAG).left_behind(before) == {}


def _wanted() -> Request:
    token = secrets.token_hex(16)
    spec = SandboxSpec("base", DEFAULT_SHAPE, Lifetime(idle_timeout_s=0), NetworkPolicy(), access_token=token)
    return Request(SandboxId(uuid4()), spec, str(UUID(int=0)))


@asynccontextmanager
async def _unseeded(host_ip: str, access_token: str) -> AsyncIterator[Guest]:
    """A guest that is told everything but the host's random numbers."""
    async with open_guest(host_ip, access_token) as guest:
        initialise = guest.initialise

        async def partly(identity: Identity, *, limit_s: float, known_token: str = "") -> None:
            await initialise(Partly(identity, {"reseed": False}), limit_s=limit_s, known_token=known_token)

        guest.initialise = partly
        yield guest


async def _first_reads(data_dir: Path, *, reseed: bool, rounds: int) -> list[set[bytes]]:
    """What three forks at a time of one running sandbox read; ends early when two of them read the same."""
    (data_dir / "token").write_text(TOKEN)
    (data_dir / "run").mkdir()
    settings = Settings(data_dir=data_dir, images_dir=IMAGES_DIR, token_file=data_dir / "token", tag=TAG)
    found: list[set[bytes]] = []
    async with asyncio.timeout(250), open_platform(settings) as platform, asyncio.TaskGroup() as group:
        parts = assemble(settings, platform, TOKEN, group)
        host = parts.registry.host
        registry = Registry(host if reseed else replace(host, open_guest=_unseeded), group)
        registry.open()
        moments = Moments(registry, group)
        source = await registry.create(_wanted())
        while len(found) < rounds and all(len(reads) == 3 for reads in found):
            _, children = await moments.fork(source.request.id, uuid4(), [_wanted() for _ in range(3)])
            reads = set()
            for child in children:
                async with child.use() as running:
                    reads.add(await output(running.guest, "head", "-c", "32", "/dev/urandom"))
            found.append(reads)
            for child in children:
                await registry.destroy(child.request.id)
        await registry.destroy(source.request.id)
        await parts.templates.close()
    return found


def test_first_reads_of_three_forks_differ(tmp_path: Path) -> None:
    (found,) = asyncio.run(_first_reads(tmp_path, reseed=True, rounds=1))
    assert len(found) == 3


def test_without_the_reseed_they_do_not(tmp_path: Path) -> None:
    found = asyncio.run(_first_reads(tmp_path, reseed=False, rounds=ROUNDS))
    assert len(found[-1]) < 3, found
