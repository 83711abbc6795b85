"""libnftables, in this process: one text, one transaction.

The library works on the namespace of the calling thread. It keeps global state (an interface cache, parser tables), so
calls are serialised. Functions and return codes: libnftables(3).
"""

from __future__ import annotations

import ctypes
import json
import threading
from functools import cache
from typing import Any

from wrenn_sandbox.core.errors import Bug, Unavailable

_LIBRARY = "libnftables.so.1"
_OUTPUT_JSON = 1 << 4  # nftables/libnftables.h: NFT_CTX_OUTPUT_JSON
_lock = threading.Lock()


def transact(commands: str) -> None:
    """Put all of ``commands`` (nft(8) syntax) in force, or none; raises Unavailable or Bug (``firewall_refused``)."""
    _run(commands, output_flags=0)


def query(command: str) -> list[dict[str, Any]]:
    """What a ``list`` command shows, as objects of libnftables-json(5)."""
    text = _run(command, output_flags=_OUTPUT_JSON)
    return list(json.loads(text)["nftables"]) if text else []


def available() -> bool:
    """Whether the library can be loaded."""
    try:
        _library()
    except Unavailable:
        return False
    return True


def _run(commands: str, output_flags: int) -> str:
    library = _library()
    with _lock:
        context = library.nft_ctx_new(0)
        if not context:
            raise Unavailable("nftables cannot be opened: run the agent as root.", slug="firewall_unavailable")
        try:
            library.nft_ctx_buffer_output(context)
            library.nft_ctx_buffer_error(context)
            library.nft_ctx_output_set_flags(context, output_flags)
            if library.nft_run_cmd_from_buffer(context, commands.encode("ascii")) != 0:
                complaint = (library.nft_ctx_get_error_buffer(context) or b"").decode(errors="replace")
                raise Bug(f"nftables refused the rules: {complaint.strip()[:2000]}", slug="firewall_refused")
            return (library.nft_ctx_get_output_buffer(context) or b"").decode(errors="replace")
        finally:
            library.nft_ctx_free(context)


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise Unavailable(
            f"{_LIBRARY} cannot be loaded ({error}): install the package libnftables1.", slug="firewall_unavailable"
        ) from None
    pointer = ctypes.c_void_p
    library.nft_ctx_new.restype = pointer
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    for name in ("nft_ctx_free", "nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(library, name).argtypes = [pointer]
    for name in ("nft_ctx_get_error_buffer", "nft_ctx_get_output_buffer"):
        getattr(library, name).argtypes = [pointer]
        getattr(library, name).restype = ctypes.c_char_p
    library.nft_ctx_output_set_flags.argtypes = [pointer, ctypes.c_uint]
    library.nft_ctx_output_set_flags.restype = None
    library.nft_ctx_free.restype = None
    library.nft_run_cmd_from_buffer.argtypes = [pointer, ctypes.c_char_p]
    library.nft_run_cmd_from_buffer.restype = ctypes.c_int
    return library
