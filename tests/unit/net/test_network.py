"""Both networks fit the protocol: mypy proves the types, this the names, for those who do not run mypy."""

import inspect

import pytest

from wrenn_sandbox.net.loopback import LoopbackLink, LoopbackNetwork
from wrenn_sandbox.net.network import Link, Network
from wrenn_sandbox.net.pool import NamespacePool
from wrenn_sandbox.net.slotlink import SlotLink


@pytest.mark.parametrize("network", [LoopbackNetwork, NamespacePool])
@pytest.mark.parametrize("method", ["link", "sweep"])
def test_networks(network: type, method: str) -> None:
    wanted = inspect.signature(getattr(Network, method))
    assert list(inspect.signature(getattr(network, method)).parameters) == list(wanted.parameters)


@pytest.mark.parametrize("link", [LoopbackLink, SlotLink])
def test_links(link: type) -> None:
    assert {"slot", "tap_fd"} <= set(link.__dataclass_fields__)
    assert inspect.signature(link.apply).parameters.keys() == inspect.signature(Link.apply).parameters.keys()
