"""``/v1/hosts/current`` and ``/health``: what runs the sandboxes, and whether we serve."""

from __future__ import annotations

from starlette.responses import Response

from wrenn_sandbox import __version__
from wrenn_sandbox.controlplane.http.auth import Here, Who
from wrenn_sandbox.controlplane.http.v1.models import HealthOut, HostOut, TemplateOut
from wrenn_sandbox.controlplane.usecases.describe_host import describe_host, host_status


async def get_current_host(here: Here, who: Who) -> Response:
    """Describe the host: its driver, its capacity, and the state of its base templates."""
    described = await describe_host(here)
    host = described.answer
    shown = HostOut(
        id=str(described.id),
        status="online",
        driver=host.driver,
        accelerated=host.accelerated,
        arch=host.arch,
        version=host.version,
        cpu_cores=host.cpu_cores,
        memory_mb=host.memory_mb,
        memory_available_mb=host.memory_available_mb,
        disk_mb=host.disk_mb,
        disk_free_mb=host.disk_free_mb,
        running=host.running,
        vcpu_choices=list(host.vcpu_choices),
        memory_mb_choices=list(host.memory_mb_choices),
        templates=[
            TemplateOut(name=t.name, vcpus=t.vcpus, memory_mb=t.memory_mb, status=t.status, detail=t.detail)
            for t in host.templates
        ],
    )
    return Response(shown.model_dump_json(), media_type="application/json")


async def get_health(here: Here) -> Response:
    """Answer when this control plane serves. A silent host does not make it unhealthy."""
    shown = HealthOut(status="ok", version=__version__, host=host_status(here))
    return Response(shown.model_dump_json(), media_type="application/json")
