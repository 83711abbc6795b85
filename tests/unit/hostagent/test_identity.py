from __future__ import annotations

from dataclasses import replace

from tests.unit.hostagent.world import request
from wrenn_sandbox.hostagent.identity import identity


def test_defaults_reach_the_guest() -> None:
    wanted = request()
    spec = replace(wanted.spec, envs={"A": "1"}, default_user="root", default_workdir="/srv")
    body = identity(replace(wanted, spec=spec)).to_json()
    assert (body["envVars"], body["defaultUser"], body["defaultWorkdir"]) == ({"A": "1"}, "root", "/srv")
    assert body["accessToken"] == wanted.spec.access_token and body["sandboxId"] == str(wanted.id)


def test_every_restore_gets_other_random_numbers_and_keeps_its_machine_id() -> None:
    wanted = request()
    first, second = identity(wanted), identity(wanted)
    assert first.entropy != second.entropy and first.machine_id == second.machine_id == wanted.id.value.hex
