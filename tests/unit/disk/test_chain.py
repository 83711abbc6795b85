from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from wrenn_sandbox.core.errors import Bug, Exhausted
from wrenn_sandbox.disk import chain, durability, qemu_img

ROOT = Path("/images/rootfs/1/rootfs.ext4")


def test_the_whole_chain_is_said_and_no_lock_is_taken() -> None:
    kind, _, text = chain.as_json((Path("/builds/2/disk.qcow2"), Path("/builds/1/disk.qcow2")), ROOT).partition(":")
    assert kind == "json"

    def node(driver: str, path: str) -> dict[str, object]:
        return {
            "driver": driver,
            "file": {"driver": "file", "filename": path, "locking": "off"},
            "read-only": True,
        }

    below = {**node("qcow2", "/builds/1/disk.qcow2"), "backing": node("raw", str(ROOT))}
    assert json.loads(text) == {**node("qcow2", "/builds/2/disk.qcow2"), "backing": below}


class _Img:
    """Records what is asked of qemu-img; compare answers ``same``, a rebase may fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, same: int = 0, error: Exception | None = None) -> None:
        self.asked: list[str] = []
        self.same, self.error = same, error
        monkeypatch.setattr(qemu_img, "run", self)

    def __call__(self, *words: str, room: Path, wanted: Callable[[], bool], accepted: tuple[int, ...] = (0,)) -> int:
        self.asked.append(words[0])
        assert wanted()
        if words[0] == "rebase" and self.error is not None:
            raise self.error
        return self.same if words[0] == "compare" else 0


@pytest.fixture
def layers(tmp_path: Path) -> tuple[Path, Path]:
    from wrenn_sandbox.disk import overlay

    root, layer = tmp_path / "rootfs.ext4", tmp_path / "disk.qcow2"
    root.write_bytes(bytes(4096))
    overlay.create(layer, root, "raw")
    return layer, root


def test_a_flat_layer_is_compared_before_it_is_kept(
    layers: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    img = _Img(monkeypatch)
    chain.flatten(layers[:1], layers[1], tmp_path / "flat.qcow2", lambda: True)
    assert img.asked == ["rebase", "compare"]
    assert (tmp_path / "flat.qcow2").exists()


def test_a_layer_that_differs_is_not_kept(
    layers: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _Img(monkeypatch, same=1)
    with pytest.raises(Bug):
        chain.flatten(layers[:1], layers[1], tmp_path / "flat.qcow2", lambda: True)
    assert not (tmp_path / "flat.qcow2").exists()


def test_a_failed_rewriting_leaves_nothing(
    layers: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _Img(monkeypatch, error=durability.disk_full())
    with pytest.raises(Exhausted):
        chain.flatten(layers[:1], layers[1], tmp_path / "flat.qcow2", lambda: True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk.qcow2", "rootfs.ext4"]
