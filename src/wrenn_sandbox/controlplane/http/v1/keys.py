"""``/v1/api-keys``: issue, list, revoke."""

from __future__ import annotations

from starlette.responses import Response

from wrenn_sandbox.controlplane.http.auth import Here, Who
from wrenn_sandbox.controlplane.http.v1.models import KeyOut, NewKey, NewKeyOut
from wrenn_sandbox.controlplane.usecases.issue_keys import ApiKey, issue_key, list_keys, revoke_key
from wrenn_sandbox.core.ids import ApiKeyId

UNNAMED = "Unnamed API Key"


async def create_key(here: Here, who: Who, body: NewKey) -> Response:
    """Issue a key. Its secret is in this answer alone."""
    issued = await issue_key(here, who, body.name or UNNAMED)
    shown = NewKeyOut(key=issued.secret, **_shown(issued.key).model_dump())
    return Response(shown.model_dump_json(exclude_none=True), 201, media_type="application/json")


async def get_keys(here: Here, who: Who) -> Response:
    """List the team's keys, newest first."""
    keys = [_shown(key).model_dump_json(exclude_none=True) for key in await list_keys(here, who.team)]
    return Response(f"[{','.join(keys)}]", media_type="application/json")


async def delete_key(here: Here, who: Who, key_id: str) -> Response:
    """Revoke a key; other control planes take it for at most 5 s more."""
    await revoke_key(here, who.team, ApiKeyId.parse(key_id))
    return Response(status_code=204)


def _shown(key: ApiKey) -> KeyOut:
    return KeyOut(
        id=str(key.id),
        team_id=str(key.team_id),
        name=key.name,
        key_prefix=key.prefix,
        created_by=str(key.created_by),
        created_at=key.created_at,
        last_used=key.last_used,
    )
