"""The driver and the network of this host, as the settings choose them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import structlog

from wrenn_sandbox.hostagent.guest import CHUNK_BYTES, Guest
from wrenn_sandbox.hostagent.settings import DriverChoice, Settings
from wrenn_sandbox.image.catalog import Catalog
from wrenn_sandbox.net.network import Network
from wrenn_sandbox.rpc.session import breaking_session
from wrenn_sandbox.vmm.driver import Driver

log = structlog.get_logger()

#: In the images directory, since it depends on what is there.
VERDICT_FILE = "accelerator.json"
#: Connections to one guest at once; more requests wait.
MAX_GUEST_CONNECTIONS = 256


@dataclass(frozen=True, slots=True)
class Platform:
    """What sandboxes run on."""

    driver: Driver
    network: Network


@asynccontextmanager
async def open_platform(settings: Settings) -> AsyncIterator[Platform]:
    """Find the driver, bring the network up. What is not chosen is not imported."""
    if settings.driver is DriverChoice.FAKE:
        from wrenn_sandbox.net.loopback import LoopbackNetwork
        from wrenn_sandbox.vmm.fake import FakeDriver
        from wrenn_sandbox.vmm.shim import found_shim

        shim = await found_shim(settings.data_dir / "fake")
        async with LoopbackNetwork(settings.tag) as loopback:
            yield Platform(FakeDriver(shim=shim), loopback)
        return
    from wrenn_sandbox.net.pool import NamespacePool, PoolOptions

    driver = await _qemu(settings)
    options = PoolOptions(
        tag=settings.tag, pools=settings.pools, warm=settings.warm_slots, limit=settings.max_sandboxes
    )
    async with NamespacePool(options) as pool:
        yield Platform(driver, pool)


async def _qemu(settings: Settings) -> Driver:
    from wrenn_sandbox.vmm.probe import Wanted
    from wrenn_sandbox.vmm.process import become_subreaper
    from wrenn_sandbox.vmm.qemu import trial
    from wrenn_sandbox.vmm.qemu.driver import QemuDriver

    become_subreaper()
    wanted = Wanted(settings.accelerator.value)
    verdict = await trial.choose(Catalog(settings.images_dir), settings.images_dir / VERDICT_FILE, wanted)
    log.info("accelerator chosen", accelerator=verdict.accelerator, reason=verdict.reason, cached=verdict.cached)
    return QemuDriver(verdict.accelerator, verdict.cpu_model)


@asynccontextmanager
async def open_guest(host_ip: str, access_token: str) -> AsyncIterator[Guest]:
    """A client to one guest, with connections of its own. envd keeps idle connections open, so we do too."""
    async with breaking_session(
        connector=aiohttp.TCPConnector(limit=MAX_GUEST_CONNECTIONS, keepalive_timeout=60.0, use_dns_cache=False),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        read_bufsize=CHUNK_BYTES,
        trust_env=False,
    ) as session:
        yield Guest(session, host_ip, access_token)
