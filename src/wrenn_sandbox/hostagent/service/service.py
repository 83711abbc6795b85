"""All calls together, as the generated code wants them."""

from __future__ import annotations

from wrenn_sandbox.hostagent.capacity import Capacity
from wrenn_sandbox.hostagent.moments import Moments
from wrenn_sandbox.hostagent.registry import Registry
from wrenn_sandbox.hostagent.service.commands import CommandCalls
from wrenn_sandbox.hostagent.service.errors import ErrorTranslator
from wrenn_sandbox.hostagent.service.files import MAX_WHOLE_FILE_BYTES, FileCalls
from wrenn_sandbox.hostagent.service.lifecycle import LifecycleCalls
from wrenn_sandbox.hostagent.service.moments import MomentCalls
from wrenn_sandbox.hostagent.service.terminals import TerminalCalls
from wrenn_sandbox.hostagent.templates import Templates
from wrenn_sandbox.rpc.gen.hostagent.v1.hostagent_connect import HostAgentService, HostAgentServiceASGIApplication
from wrenn_sandbox.vmm.driver import Capabilities

#: A whole file and what is around it.
MAX_MESSAGE_BYTES = MAX_WHOLE_FILE_BYTES + 64 * 1024


class HostAgentCalls(LifecycleCalls, MomentCalls, CommandCalls, TerminalCalls, FileCalls, HostAgentService):
    """The service."""

    def __init__(
        self,
        registry: Registry,
        moments: Moments,
        templates: Templates,
        capacity: Capacity,
        capabilities: Capabilities,
    ) -> None:
        LifecycleCalls.__init__(self, registry, templates, capacity, capabilities)
        MomentCalls.__init__(self, moments, capabilities)


def connect_application(calls: HostAgentCalls) -> HostAgentServiceASGIApplication:
    """The ASGI application; answers are not compressed, since both ends are on one machine or in one rack."""
    return HostAgentServiceASGIApplication(
        calls, interceptors=[ErrorTranslator()], read_max_bytes=MAX_MESSAGE_BYTES, compressions=[]
    )
