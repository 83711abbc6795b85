"""Our errors over the Connect protocol and back, losing neither class nor slug."""

from __future__ import annotations

from connectrpc.code import Code
from connectrpc.errors import ConnectError

from wrenn_sandbox.core import errors
from wrenn_sandbox.core.errors import WrennError, connect_code
from wrenn_sandbox.rpc.gen.hostagent.v1.hostagent_pb import ErrorInfo

_CLASS_OF_CODE: dict[str, type[WrennError]] = {name: cls for cls, name in errors.CONNECT_CODE.items()} | {
    "unknown": errors.Bug,
    "aborted": errors.Conflict,
    "unimplemented": errors.Invalid,
}


def to_connect(error: WrennError) -> ConnectError:
    """The Connect error for ``error``, its slug in an ErrorInfo detail."""
    info = ErrorInfo(slug=error.slug, retry_after_s=error.retry_after_s)
    return ConnectError(Code(connect_code(error)), error.message, details=[info])


def from_connect(error: ConnectError) -> WrennError:
    """The typed error behind ``error``; the class's default slug when the peer sent no ErrorInfo."""
    cls = _CLASS_OF_CODE.get(error.code.value, errors.Bug)
    for detail in error.details:
        if detail.type_name == "hostagent.v1.ErrorInfo" and (info := detail.value(ErrorInfo)) is not None:
            return cls(error.message, slug=info.slug or None, retry_after_s=info.retry_after_s)
    return cls(error.message)
