from __future__ import annotations

import asyncio

import pytest

from wrenn_sandbox.controlplane.usecases.issue_keys import (
    issue_key,
    key_hash,
    list_keys,
    recognise,
    revoke_key,
    write_uses,
)
from wrenn_sandbox.core.errors import Conflict, NotFound, Unauthenticated
from wrenn_sandbox.core.ids import TeamId


def test_both_prefixes_name_the_same_key() -> None:
    digits = "0123456789abcdef" * 2
    assert key_hash(f"wrn_{digits}") == key_hash(f"e2b_{digits}") is not None


@pytest.mark.parametrize(
    "text", ["", "wrn_", "wrn_" + "0" * 31, "wrn_" + "0" * 33, "wrn_" + "A" * 32, "xyz_" + "0" * 32, "wrn_" + "٣" * 32]
)
def test_what_has_not_the_form_of_a_key_is_none(text: str) -> None:
    assert key_hash(text) is None


def test_a_key_from_issue_to_revocation(world) -> None:
    async def main() -> None:
        async with world() as w:
            caller = await recognise(w.platform, w.key)
            assert caller.team == w.team
            issued = await issue_key(w.platform, caller, "ci")
            assert issued.secret.startswith(issued.key.prefix) and issued.secret not in repr(issued)
            assert (await recognise(w.platform, issued.secret)).key.id == issued.key.id
            assert {key.name for key in await list_keys(w.platform, w.team)} == {"test", "ci"}
            with pytest.raises(NotFound):
                await revoke_key(w.platform, TeamId(w.platform.host_id.value), issued.key.id)
            await revoke_key(w.platform, w.team, issued.key.id)
            with pytest.raises(Unauthenticated):
                await recognise(w.platform, issued.secret)
            with pytest.raises(Conflict) as caught:
                await revoke_key(w.platform, w.team, caller.key.id)
            assert caught.value.slug == "last_key"
            assert (await recognise(w.platform, w.key)).team == w.team

    asyncio.run(main())


def test_uses_are_written_down_later(world) -> None:
    async def main() -> None:
        async with world() as w:
            await recognise(w.platform, w.key)
            assert (await list_keys(w.platform, w.team))[0].last_used is None
            await write_uses(w.platform)
            assert (await list_keys(w.platform, w.team))[0].last_used is not None
            assert w.platform.used_keys == {}

    asyncio.run(main())
