"""Every error a user can cause: a class by what the caller can do next, and a stable slug.

Adapters translate foreign errors (OSError, QMPError, ...) at their own seam into one of these; the two tables below
are the only places where a class becomes an HTTP status or a Connect code. Nothing is ever classified by the words
of a message.
"""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


class WrennError(Exception):
    """An error with a stable ``slug`` and a sentence that says what to do.

    ``retry_after_s`` is the number of seconds after which trying again may help, 0 when unknown or pointless.
    """

    default_slug = "internal_error"

    def __init__(self, message: str, *, slug: str | None = None, retry_after_s: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.slug = slug or self.default_slug
        self.retry_after_s = retry_after_s


class Invalid(WrennError):
    """The request itself is wrong; sending it again unchanged cannot help."""

    default_slug = "invalid_request"


class Unauthenticated(WrennError):
    """The caller did not say who it is, or what it said does not hold."""

    default_slug = "unauthorized"


class Denied(WrennError):
    """The caller is known and may not do this."""

    default_slug = "forbidden"


class NotFound(WrennError):
    """What was named does not exist, or not for this caller."""

    default_slug = "not_found"


class Conflict(WrennError):
    """The thing is not in a state in which this is possible; look at it, then decide."""

    default_slug = "invalid_state"


class AlreadyExists(Conflict):
    """The name is taken."""

    default_slug = "conflict"


class Exhausted(WrennError):
    """There is no room now; the same request may succeed later."""

    default_slug = "host_full"


class TooLarge(WrennError):
    """The content does not fit a limit; a streaming call or a smaller content will."""

    default_slug = "too_large"


class NoSpace(WrennError):
    """The disk inside the sandbox is full; free some room in it first."""

    default_slug = "no_space"


class Timeout(WrennError):
    """The time the caller allowed has passed."""

    default_slug = "deadline_exceeded"


class Canceled(WrennError):
    """The caller went away before the answer was ready."""

    default_slug = "canceled"


class Unavailable(WrennError):
    """Something this needs does not answer now; the same request may succeed later."""

    default_slug = "host_unavailable"


class Bug(WrennError):
    """Our fault. The log has the details."""

    default_slug = "internal_error"


#: HTTP status of each class; a subclass not listed takes its parent's.
HTTP_STATUS: dict[type[WrennError], int] = {
    Invalid: 400,
    Unauthenticated: 401,
    Denied: 403,
    NotFound: 404,
    Conflict: 409,
    TooLarge: 413,
    Canceled: 499,
    Bug: 500,
    Exhausted: 503,
    Unavailable: 503,
    Timeout: 504,
    NoSpace: 507,
}

#: Connect code of each class, by the protocol's names; ``rpc.errors`` maps both ways.
CONNECT_CODE: dict[type[WrennError], str] = {
    Invalid: "invalid_argument",
    Unauthenticated: "unauthenticated",
    Denied: "permission_denied",
    NotFound: "not_found",
    Conflict: "failed_precondition",
    AlreadyExists: "already_exists",
    TooLarge: "out_of_range",
    NoSpace: "data_loss",
    Canceled: "canceled",
    Bug: "internal",
    Exhausted: "resource_exhausted",
    Unavailable: "unavailable",
    Timeout: "deadline_exceeded",
}


def http_status(error: WrennError) -> int:
    """The HTTP status that says what the caller can do about ``error``."""
    return _lookup(HTTP_STATUS, type(error))


def connect_code(error: WrennError) -> str:
    """The Connect code name that says what the caller can do about ``error``."""
    return _lookup(CONNECT_CODE, type(error))


def first_cause(error: BaseException) -> BaseException:
    """The first error inside nested exception groups: the cause, when the tasks of a group are one operation."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _lookup(table: dict[type[WrennError], T], cls: type[WrennError]) -> T:
    for ancestor in cls.__mro__:
        if ancestor in table:
            return table[ancestor]
    return table[Bug]
