"""The image commands hand their options on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from wrenn_sandbox.cli import image
from wrenn_sandbox.core.artefacts import ArtefactSet
from wrenn_sandbox.core.errors import Invalid, Unavailable
from wrenn_sandbox.image.catalog import Catalog
from wrenn_sandbox.image.rootfs import DEFAULT_SIZE_MIB as ROOTFS_SIZE_MIB


def test_build_passes_its_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    async def build_all(images: Path, progress, **options: object) -> ArtefactSet:
        asked.append((images, options))
        progress("kernel: ready")
        return ArtefactSet("r", "k", "6.1", "i", "t", "f")

    monkeypatch.setattr("wrenn_sandbox.image.build.build_all", build_all)
    here = ["build", "--images-dir", str(tmp_path)]
    plain = CliRunner().invoke(image.app, here)
    assert (plain.stdout, plain.stderr) == ("", "kernel: ready\n")
    full = CliRunner().invoke(
        image.app, [*here, "--refresh", "--force", "--only", "rootfs", "--rootfs-size-mib", "64", "--json"]
    )
    assert json.loads(full.stdout)["kernel_release"] == "6.1"
    assert asked == [
        (tmp_path, {"refresh": False, "force": False, "only": "", "rootfs_size_mib": ROOTFS_SIZE_MIB}),
        (tmp_path, {"refresh": True, "force": True, "only": "rootfs", "rootfs_size_mib": 64}),
    ]


def test_build_refuses_what_is_no_artefact(tmp_path: Path) -> None:
    done = CliRunner().invoke(image.app, ["build", "--images-dir", str(tmp_path), "--only", "kitchen"])
    assert isinstance(done.exception, Invalid)
    assert done.exception.slug == "invalid_step"
    assert list(tmp_path.iterdir()) == []


def test_show(tmp_path: Path) -> None:
    assert isinstance(CliRunner().invoke(image.app, ["show", "--images-dir", str(tmp_path)]).exception, Unavailable)
    Catalog(tmp_path).set_current(ArtefactSet("r", "k", "6.1", "i", "t", "f"))
    done = CliRunner().invoke(image.app, ["show", "--images-dir", str(tmp_path)])
    assert json.loads(done.stdout)["kernel_release"] == "6.1"
