"""What the two halves of /files share: whose rights count, and which path is meant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from connectrpc.code import Code
from connectrpc.errors import ConnectError

from wrenn_sandbox.core.errors import Invalid, Unauthenticated
from wrenn_sandbox.envd.context import GuestContext
from wrenn_sandbox.envd.rights import FileThreads
from wrenn_sandbox.envd.users import User, resolve_path, resolve_user


@dataclass(frozen=True, slots=True)
class FileAccess:
    """The guest's files as its users see them."""

    context: GuestContext
    threads: FileThreads

    def user(self, query: Mapping[str, str]) -> User:
        """The account named by ``username``, else the default one; raises Unauthenticated."""
        try:
            return resolve_user(query.get("username") or self.context.default_user)
        except ConnectError as error:
            raise Unauthenticated(error.message, slug="invalid_username") from error

    def path(self, text: str, user: User) -> str:
        """``text`` as an absolute path of ``user``; raises Invalid."""
        try:
            return resolve_path(text, user, self.context.default_workdir)
        except ConnectError as error:
            if error.code == Code.INVALID_ARGUMENT:
                raise Invalid(error.message, slug="invalid_path") from error
            raise
