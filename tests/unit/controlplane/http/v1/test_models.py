from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from wrenn_sandbox.controlplane.http.v1.models import CreateSandbox, Exec, Network, decoded
from wrenn_sandbox.core.spec import Egress


def test_the_defaults_are_a_small_open_sandbox() -> None:
    body = CreateSandbox()
    assert (body.template, body.vcpus, body.memory_mb, body.timeout_sec) == ("base", 1, 512, None)
    assert body.network.egress is Egress.OPEN


@pytest.mark.parametrize(
    ("network", "egress"),
    [({}, Egress.OPEN), ({"allow_out": ["1.2.3.4"]}, Egress.ALLOW_LIST), ({"egress": "closed"}, Egress.CLOSED)],
)
def test_an_allow_list_means_nothing_else(network: dict[str, Any], egress: Egress) -> None:
    assert Network(**network).egress is egress


def test_ranges_are_put_into_one_form() -> None:
    assert Network(deny_out=["203.0.113.9/24", "198.51.100.7"]).deny_out == ["203.0.113.0/24", "198.51.100.7/32"]


@pytest.mark.parametrize(
    "network",
    [
        {"egress": "closed", "allow_out": ["1.2.3.4"]},
        {"egress": "closed", "deny_out": ["1.2.3.4"]},
        {"allow_out": ["1.2.3.4"], "deny_out": ["1.2.3.4"]},
        {"allow_out": ["1.2.3.4/33"]},
        {"allow_out": ["example.com"]},
        {"allow_out": ["1.2.3.4"] * 257},
    ],
)
def test_rules_that_mean_nothing_are_refused(network: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Network(**network)


def test_an_environment_has_a_limit_in_all() -> None:
    with pytest.raises(ValidationError, match="256 KiB"):
        CreateSandbox(envs={f"A{n}": "x" * 100_000 for n in range(3)})


def test_standard_input() -> None:
    assert Exec(cmd="x", stdin="ü").stdin_bytes() == "ü".encode()
    assert Exec(cmd="x", stdin="/w==", stdin_encoding="base64").stdin_bytes() == b"\xff"
    with pytest.raises(ValueError, match="base64"):
        decoded("ü", "base64")
