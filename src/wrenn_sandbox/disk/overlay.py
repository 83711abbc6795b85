"""Empty qcow2 overlays, written straight from the format.

An overlay is made in the way of every create, and starting qemu-img for it would cost 15 to 30 ms against a fraction of
one for writing the few non-zero bytes of an empty image ourselves. The format is QEMU's docs/interop/qcow2.rst, version
3; a unit test lets the real qemu-img judge every field. An empty overlay is four clusters, nearly all hole::

    0  header, extensions, name of the backing file
    1  refcount table: one entry
    2  refcount block: the clusters used so far
    3  L1 table, all zero: every cluster comes from below (more clusters for disks above 1 TiB)
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from wrenn_sandbox.core.errors import Bug
from wrenn_sandbox.disk import durability

MAGIC = b"QFI\xfb"
_VERSION = 3
#: 128 KiB clusters of 32 subclusters: a guest's 4 KiB write takes 4 KiB here and copies nothing from below.
CLUSTER_BITS = 17
_CLUSTER = 1 << CLUSTER_BITS
_REFCOUNT_ORDER = 4  # refcounts of 1 << 4 bits
_INCOMPATIBLE_EXTENDED_L2 = 1 << 4
_L2_ENTRY_BYTES = 16  # extended: a subcluster bitmap beside the offset
_BACKING_FORMAT_EXTENSION = 0xE2792ACA
_HEADER = struct.Struct(">4sI QII Q I I QQ I I Q QQQ II 8x")
_HEADER_BYTES = 112
_VIRTUAL_SIZE = struct.Struct(">Q")
_VIRTUAL_SIZE_OFFSET = 24
_SECTOR = 512
_MAX_NAME_BYTES = 1023
BACKING_FORMATS = ("raw", "qcow2")


@dataclass(frozen=True, slots=True)
class Image:
    """An image file to be: its length, and the pieces that are not zero by their offset."""

    length: int
    pieces: dict[int, bytes]


def create(overlay: Path, backing: Path, backing_format: str) -> None:
    """Make the new file ``overlay``, as large as ``backing`` and empty. Blocks for well under a millisecond.

    ``backing_format`` is ``raw`` or ``qcow2``. Nothing is synced: an overlay that has no content has nothing to lose.
    Raises Exhausted (``host_disk_full``), Unavailable (``disk_unavailable``).
    """
    try:
        image = empty(virtual_size(backing, backing_format), str(backing.absolute()), backing_format)
        _write(overlay, image)
    except OSError as error:
        raise durability.translated(error, f"the disk overlay {overlay}") from error


def virtual_size(path: Path, image_format: str) -> int:
    """Bytes that a guest sees of ``path``; raises Bug when it is not of that format."""
    with path.open("rb") as file:
        if image_format == "raw":
            return os.fstat(file.fileno()).st_size
        head = file.read(_VIRTUAL_SIZE_OFFSET + _VIRTUAL_SIZE.size)
    if image_format != "qcow2" or len(head) < _VIRTUAL_SIZE_OFFSET + _VIRTUAL_SIZE.size or head[:4] != MAGIC:
        raise Bug(f"{path} is not a {image_format} image.")
    (size,) = _VIRTUAL_SIZE.unpack_from(head, _VIRTUAL_SIZE_OFFSET)
    return int(size)


def empty(size_bytes: int, backing: str, backing_format: str) -> Image:
    """An image of ``size_bytes`` in which everything comes from ``backing``, an absolute path."""
    name, kind = backing.encode(), backing_format.encode()
    if backing_format not in BACKING_FORMATS or len(name) > _MAX_NAME_BYTES or size_bytes <= 0:
        raise Bug(f"No overlay can be made of {size_bytes} bytes above {backing!r} as {backing_format!r}.")
    size = -(-size_bytes // _SECTOR) * _SECTOR
    l1_entries = -(-size // (_CLUSTER * (_CLUSTER // _L2_ENTRY_BYTES)))
    clusters = 3 + -(-l1_entries * 8 // _CLUSTER)
    extensions = struct.pack(">II", _BACKING_FORMAT_EXTENSION, len(kind)) + kind + b"\0" * (-len(kind) % 8)
    extensions += struct.pack(">II", 0, 0)
    header = _HEADER.pack(
        MAGIC, _VERSION,
        _HEADER_BYTES + len(extensions), len(name), CLUSTER_BITS,  # backing file name; cluster size
        size, 0, l1_entries,  # no encryption
        3 * _CLUSTER, 1 * _CLUSTER, 1,  # L1 table; refcount table and its clusters
        0, 0,  # no internal snapshots
        _INCOMPATIBLE_EXTENDED_L2, 0, 0,  # no lazy refcounts: a killed VMM must leave a clean image
        _REFCOUNT_ORDER, _HEADER_BYTES,
    )  # fmt: skip
    return Image(
        length=clusters * _CLUSTER,
        pieces={
            0: header + extensions + name,
            1 * _CLUSTER: struct.pack(">Q", 2 * _CLUSTER),
            2 * _CLUSTER: struct.pack(">H", 1) * clusters,
        },
    )


def _write(path: Path, image: Image) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, image.length)
        for offset, data in image.pieces.items():
            os.pwrite(fd, data, offset)
    except BaseException:
        path.unlink()
        raise
    finally:
        os.close(fd)
