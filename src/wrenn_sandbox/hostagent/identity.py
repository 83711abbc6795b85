"""What a guest is told after it was restored, whichever step restored it."""

from __future__ import annotations

import secrets
import time

from wrenn_sandbox.hostagent.guest import Identity
from wrenn_sandbox.hostagent.request import Request

#: The restored guest must take its identity within this time.
INIT_LIMIT_S = 10.0
RELAY_CONNECT_LIMIT_S = 5.0
_ENTROPY_BYTES = 64


def identity(request: Request) -> Identity:
    """What makes this guest differ from every other one restored from the same memory."""
    spec = request.spec
    return Identity(
        sandbox_id=str(request.id),
        template_id=request.template_id,
        access_token=spec.access_token,
        machine_id=request.id.value.hex,
        entropy=secrets.token_bytes(_ENTROPY_BYTES),
        timestamp_unix_s=time.time(),
        envs=spec.envs,
        default_user=spec.default_user,
        default_workdir=spec.default_workdir,
    )
