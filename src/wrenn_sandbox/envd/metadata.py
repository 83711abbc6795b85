"""What clients note about a file: ``X-Metadata-<key>`` headers, kept as extended attributes ``user.e2b.<key>``."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping

from wrenn_sandbox.core.errors import Invalid

HEADER_PREFIX = b"x-metadata-"
ATTRIBUTE_PREFIX = "user.e2b."
#: An attribute name has at most 255 bytes (xattr(7)); one block of ext4 holds all values.
MAX_KEY_BYTES, MAX_TOTAL_BYTES = 246, 4096


def from_headers(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """The metadata a request asks for, keys in lower case; raises Invalid when a limit is passed."""
    found, total = {}, 0
    for name, value in headers:
        if not name.startswith(HEADER_PREFIX):
            continue
        key = name[len(HEADER_PREFIX) :]
        total += len(key) + len(value)
        if not key or len(key) > MAX_KEY_BYTES or total > MAX_TOTAL_BYTES:
            raise Invalid(
                f"Metadata keys must have 1 to {MAX_KEY_BYTES} bytes, and all metadata at most {MAX_TOTAL_BYTES}.",
                slug="invalid_metadata",
            )
        if not all(0x20 <= byte <= 0x7E for byte in key + value):
            raise Invalid("Metadata must be printable ASCII.", slug="invalid_metadata")
        found[key.decode("ascii").lower()] = value.decode("ascii")
    return found


def replace(file: int, metadata: Mapping[str, str], *, fresh: bool) -> None:
    """Make ``metadata`` all that an open file has; ``fresh`` says that it has none yet. Raises OSError, Invalid."""
    stale = set() if fresh else set(_keys(file)) - set(metadata)
    try:
        for key in stale:
            os.removexattr(file, ATTRIBUTE_PREFIX + key)
        for key, value in metadata.items():
            os.setxattr(file, ATTRIBUTE_PREFIX + key, value.encode())
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            raise Invalid("This file system keeps no metadata.", slug="metadata_unsupported") from error
        raise


def read(file: int | str) -> dict[str, str]:
    """The metadata of an open file or a path; empty where the file system keeps none."""
    found = {}
    for key in _keys(file):
        try:
            found[key] = os.getxattr(file, ATTRIBUTE_PREFIX + key).decode("ascii", "replace")
        except OSError:
            continue
    return found


def _keys(file: int | str) -> list[str]:
    try:
        names = os.listxattr(file)
    except OSError:
        return []
    return [name[len(ATTRIBUTE_PREFIX) :] for name in names if name.startswith(ATTRIBUTE_PREFIX)]
