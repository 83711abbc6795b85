"""Chains of qcow2 layers, wherever the files lie now.

A layer's header records the path of what was below it when it was made; files move since then, so every program is told
the whole chain explicitly and no recorded path is ever followed (QEMU's docs/system/qemu-block-drivers, json:).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from wrenn_sandbox.core.errors import Bug
from wrenn_sandbox.disk import durability, overlay, qemu_img

_DIFFERENT = 1


def as_json(layers: Sequence[Path], root: Path) -> str:
    """The image that is seen through ``layers``, nearest first, down to ``root``, a raw image: a name for qemu-img."""
    return "json:" + json.dumps(_described(layers, root))


def flatten(layers: Sequence[Path], root: Path, target: Path, wanted: Callable[[], bool]) -> None:
    """Write what ``layers`` add to ``root`` into the new layer ``target``, and prove that nothing else changed.

    Durable when it returns; takes 1 s for some GB. Raises as ``qemu_img.run`` does, and Bug when the
    result is not equal; ``target`` is gone then.
    """
    try:
        with durability.disk_errors("a disk layer"):
            overlay.create(target, layers[0], "qcow2")
        above_all = {**_node("qcow2", target), "backing": _described(layers, root)}
        # The comparing kind of rebase: what reads differently through the old chain than from the root is copied.
        words = ("rebase", "-t", "unsafe", "-b", str(root), "-F", "raw", "json:" + json.dumps(above_all))
        qemu_img.run(*words, room=target.parent, wanted=wanted)
        if not equal((target,), layers, root, wanted):
            raise Bug("A flattened disk is not equal to the layers it came from; those are kept.")
        with durability.disk_errors("a disk layer"):
            durability.sync(target)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def equal(one: Sequence[Path], other: Sequence[Path], root: Path, wanted: Callable[[], bool]) -> bool:
    """Whether two chains above the same root read the same in every byte."""
    words = ("compare", as_json(one, root), as_json(other, root))
    return qemu_img.run(*words, room=root.parent, wanted=wanted, accepted=(0, _DIFFERENT)) == 0


def _described(layers: Sequence[Path], root: Path) -> dict[str, object]:
    node = _node("raw", root, read_only=True)
    for layer in reversed(layers):
        node = {**_node("qcow2", layer, read_only=True), "backing": node}
    return node


def _node(driver: str, path: Path, *, read_only: bool = False) -> dict[str, object]:
    # Running machines hold locks on layers they only read; ours never change, so that none are needed.
    file = {"driver": "file", "filename": str(path.absolute()), "locking": "off"}
    return {"driver": driver, "file": file, **({"read-only": True} if read_only else {})}
