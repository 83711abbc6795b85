"""The image commands hand their options on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from wrenn_sandbox.cli import image
from wrenn_sandbox.core.artefacts import ArtefactSet
from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.image.catalog import Catalog


def test_build_passes_its_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    async def build_all(images: Path, progress, *, refresh: bool) -> None:
        asked.append((images, refresh))
        progress("kernel: ready")

    monkeypatch.setattr("wrenn_sandbox.image.build.build_all", build_all)
    done = CliRunner().invoke(image.app, ["build", "--images-dir", str(tmp_path), "--refresh"])
    assert done.stdout == "kernel: ready\n"
    assert asked == [(tmp_path, True)]


def test_show(tmp_path: Path) -> None:
    assert isinstance(CliRunner().invoke(image.app, ["show", "--images-dir", str(tmp_path)]).exception, Unavailable)
    Catalog(tmp_path).set_current(ArtefactSet("r", "k", "6.1", "i", "t", "f"))
    done = CliRunner().invoke(image.app, ["show", "--images-dir", str(tmp_path)])
    assert json.loads(done.stdout)["kernel_release"] == "6.1"
