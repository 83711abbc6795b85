"""Entity ids: UUIDs inside, ``prefix-uuid`` on the wire, converted at the edge.

Making a new id needs randomness and so happens outside: ``SandboxId(uuid4())``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self
from uuid import UUID

from wrenn_sandbox.core.errors import Invalid

_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
_BASE36_LENGTH = 25  # 36**25 > 2**128 > 36**24


@dataclass(frozen=True, slots=True)
class EntityId:
    """A UUID that knows what it names. ``str()`` gives the wire form."""

    value: UUID
    prefix: ClassVar[str] = ""
    #: Prefixes of other generations that ``parse`` takes too.
    aliases: ClassVar[tuple[str, ...]] = ()

    def __str__(self) -> str:
        return f"{self.prefix}-{self.value}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``prefix-<hyphenated uuid>`` or ``prefix-<25 base36 digits>``; raises Invalid (``invalid_id``)."""
        head, _, rest = text.partition("-")
        if head in (cls.prefix, *cls.aliases):
            value = _uuid_from(rest)
            if value is not None:
                return cls(value)
        raise Invalid(f"{text[:80]!r} is not an id of the form {cls.prefix}-<uuid>.", slug="invalid_id")

    @property
    def base36(self) -> str:
        """The UUID as 25 base36 digits, big-endian, left-padded with zeros."""
        return to_base36(self.value)


class SandboxId(EntityId):
    """Names a sandbox; ``cl-`` is the prefix of another client generation."""

    prefix = "sb"
    aliases = ("cl",)


class UserId(EntityId):
    """Names a user."""

    prefix = "usr"


class TeamId(EntityId):
    """Names a team, the owner of everything else."""

    prefix = "team"


class ApiKeyId(EntityId):
    """Names an API key (not the secret itself)."""

    prefix = "key"


class HostId(EntityId):
    """Names a host."""

    prefix = "host"


class TemplateId(EntityId):
    """Names a template."""

    prefix = "tpl"


class BuildId(EntityId):
    """Names a build, one immutable set of artefacts."""

    prefix = "bld"


#: The team that owns what all teams share.
PLATFORM_TEAM_ID = TeamId(UUID(int=0))
#: The built-in base template.
BASE_TEMPLATE_ID = TemplateId(UUID(int=0))


def to_base36(value: UUID) -> str:
    """25 digits of ``0-9a-z``, big-endian."""
    number, digits = value.int, []
    for _ in range(_BASE36_LENGTH):
        number, digit = divmod(number, 36)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))


def from_base36(text: str) -> UUID | None:
    """The UUID of 25 base36 digits; None when malformed or above 128 bits."""
    if len(text) != _BASE36_LENGTH or any(c not in _ALPHABET for c in text):
        return None
    number = int(text, 36)
    return UUID(int=number) if number < 1 << 128 else None


def _uuid_from(text: str) -> UUID | None:
    if len(text) == _BASE36_LENGTH:
        return from_base36(text)
    try:
        value = UUID(text)
    except ValueError:
        return None
    return value if str(value) == text else None  # UUID() also takes braces, urn: and missing hyphens
