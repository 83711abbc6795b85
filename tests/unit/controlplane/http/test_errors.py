from __future__ import annotations

import asyncio
import json

import pytest

from wrenn_sandbox.controlplane.http.errors import answer, complaint
from wrenn_sandbox.core.errors import Exhausted, Invalid, NotFound, Unauthenticated
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Invalid("a."), 400),
        (Unauthenticated("b."), 401),
        (NotFound("c."), 404),
        (Exhausted("d.", retry_after_s=7), 503),
    ],
)
def test_the_envelope(error, status: int) -> None:
    made = answer(error)
    assert made.status_code == status
    assert json.loads(made.body) == {"error": {"code": error.slug, "message": error.message}}
    assert made.headers.get("retry-after") == ("7" if status == 503 else None)


def test_complaints_name_the_field_and_the_remedy() -> None:
    findings = [
        {"loc": ("body", "network", "egres"), "msg": "Extra inputs are not permitted", "type": "extra_forbidden"},
        {"loc": ("body", "vcpus"), "msg": "Input should be a valid integer", "type": "int_type"},
        {"loc": ("body",), "msg": "Value error, give one of them", "type": "value_error"},
    ]
    message = complaint(findings).message
    assert "network.egres: this field is not known" in message and "vcpus: Input should be" in message
    assert message.endswith("give one of them.")
    assert complaint([{"loc": ("body", 7), "msg": "x", "type": "json_invalid"}]).message.count("JSON") == 1
    assert len(complaint(findings * 50).message) < 1000


def test_what_nobody_expected_is_a_500_with_a_reference_and_nothing_else(api) -> None:
    async def main() -> None:
        async with api() as (world, client):
            secret = "secret-detail"
            world.agent.answers["GetHost"] = RuntimeError(secret)
            failed = await client.get("/v1/hosts/current", headers={"X-Request-Id": "ref-1"})
            assert failed.status_code == 500 and failed.json()["error"]["code"] == "internal_error"
            assert "ref-1" in failed.json()["error"]["message"] and secret not in failed.text
            assert failed.headers["x-request-id"] == "ref-1"
            world.agent.answers["GetHost"] = pb.GetHostResponse()
            assert (await client.get("/v1/hosts/current")).status_code == 200

    asyncio.run(main())
