from __future__ import annotations

from dataclasses import replace

from tests.unit.hostagent.world import ARTEFACTS, PLATFORM, request
from wrenn_sandbox.core.artefacts import Manifest
from wrenn_sandbox.core.spec import Shape

MANIFEST = Manifest(
    "b", "named", Shape(4, 2048), ARTEFACTS, PLATFORM, 0.0,
    default_user="ann", default_workdir="/work", envs={"A": "build"}, access_token="secret",
)  # fmt: skip


def test_a_build_fixes_the_shape_and_gives_defaults() -> None:
    spec = request().fitted(MANIFEST).spec
    assert spec.shape == Shape(4, 2048)
    assert (spec.default_user, spec.default_workdir, spec.envs) == ("ann", "/work", {"A": "build"})
    assert spec.access_token == "t" * 32, "never the one of whoever was there before"


def test_what_was_asked_for_counts_more() -> None:
    wanted = request()
    asked = replace(wanted.spec, default_user="bob", default_workdir="/b", envs={"B": "1"})
    spec = replace(wanted, spec=asked).fitted(MANIFEST).spec
    assert (spec.default_user, spec.default_workdir, spec.envs) == ("bob", "/b", {"B": "1"})
