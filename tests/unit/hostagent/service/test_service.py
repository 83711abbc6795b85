from __future__ import annotations

import inspect

from tests.unit.hostagent.world import CAPABILITIES, FakeWorld
from wrenn_sandbox.hostagent.service.service import HostAgentCalls, connect_application
from wrenn_sandbox.rpc.gen.hostagent.v1.hostagent_connect import HostAgentService


def test_every_call_of_the_contract_is_answered_here(world: FakeWorld) -> None:
    for name, stub in inspect.getmembers(HostAgentService, inspect.isfunction):
        if not name.startswith("_"):
            assert getattr(HostAgentCalls, name) is not stub, name
    calls = HostAgentCalls(None, None, None, world.capacity, CAPABILITIES)
    assert connect_application(calls).path == "/hostagent.v1.HostAgentService"
