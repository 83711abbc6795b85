"""The manifest survives its own JSON, and nothing else is taken for one."""

from __future__ import annotations

import json

import pytest

from wrenn_sandbox.core.artefacts import ArtefactSet, Manifest, Platform
from wrenn_sandbox.core.spec import Shape

MANIFEST = Manifest(
    build_id="6a0c",
    template="base",
    shape=Shape(1, 512),
    artefacts=ArtefactSet("r", "k", "6.1.0-1-cloud-amd64", "i", "t", "f"),
    platform=Platform("qemu", "tcg", "microvm", "max", "console=ttyS0"),
    created_at_unix_s=1.5,
)


def test_round_trip() -> None:
    assert Manifest.from_json(json.loads(json.dumps(MANIFEST.to_json()))) == MANIFEST


@pytest.mark.parametrize("damage", [{"shape": 3}, {"unknown": 1}, {"artefacts": {"runtime": "r"}}])
def test_damage_is_refused(damage: dict[str, object]) -> None:
    with pytest.raises((TypeError, KeyError)):
        Manifest.from_json(MANIFEST.to_json() | damage)


def test_a_missing_part_is_refused() -> None:
    data = MANIFEST.to_json()
    del data["platform"]
    with pytest.raises(KeyError):
        Manifest.from_json(data)
