"""``/v1/sandboxes/{id}/files``: contents in and out, streamed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Query
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive

from wrenn_sandbox.controlplane.http.auth import Here, InPath, Who
from wrenn_sandbox.controlplane.http.bodies import ByteStream, FileForm, body_of
from wrenn_sandbox.controlplane.http.v1.models import FilePath
from wrenn_sandbox.controlplane.usecases.transfer_files import Place, check_path, open_file, write_file
from wrenn_sandbox.core.errors import Invalid, TooLarge

#: Largest body of ``files/write``: its parts come in any order, so the file is kept until its path is known.
MAX_FORM_BYTES = 100 << 20
_CHUNK = 64 * 1024

PathQuery = Annotated[str, Query(description="A relative path counts from the user's home.")]
UserQuery = Annotated[str, Query(max_length=64)]


async def read_file(here: Here, who: Who, sandbox: InPath, path: PathQuery, user: UserQuery = "") -> Response:
    """Read a file, streamed."""
    return ByteStream(await open_file(here, who.team, sandbox, Place(path, user)))


async def put_file(
    request: Request, *, here: Here, who: Who, sandbox: InPath, path: PathQuery, user: UserQuery = ""
) -> Response:
    """Write the body to a file, streamed; folders on the way are made."""
    await write_file(here, who.team, sandbox, Place(path, user), body_of(request))
    return Response(status_code=204)


async def read_named_file(here: Here, who: Who, sandbox: InPath, body: FilePath) -> Response:
    """Read a file, streamed."""
    return ByteStream(await open_file(here, who.team, sandbox, Place(body.path, body.user)))


async def stream_named_file(here: Here, who: Who, sandbox: InPath, body: FilePath) -> Response:
    """Read a file, streamed; the same as ``files/read``."""
    return await read_named_file(here, who, sandbox, body)


async def write_form(request: Request, here: Here, who: Who, sandbox: InPath) -> Response:
    """Write the part ``file`` of a form to the path in its part ``path``; at most 100 MiB, parts in any order."""
    if int(request.headers.get("content-length", "0") or 0) > MAX_FORM_BYTES:
        raise _form_too_large()
    async with Request(request.scope, _limited(request)).form(max_files=1, max_fields=8) as form:
        path, user, file = form.get("path"), form.get("user", ""), form.get("file")
        if not isinstance(path, str) or not isinstance(user, str) or not isinstance(file, UploadFile):
            raise Invalid("The form must have the parts 'path' (text) and 'file' (with a file name).")
        await write_file(here, who.team, sandbox, Place(path, user), _spooled(file))
    return Response(status_code=204)


async def write_streamed_form(
    request: Request,
    here: Here,
    who: Who,
    sandbox: InPath,
    path: Annotated[str, Query(description="Instead of the part `path`.")] = "",
) -> Response:
    """Write the part ``file`` of a form as it arrives, of any size; its part ``path`` must come before."""
    form = FileForm(request)
    fields = await form.fields()
    place = Place(fields.get("path", path), fields.get("user", ""))
    if not place.path:
        raise Invalid("The part 'path' must come before the part 'file', or stand in the query as ?path=.")
    check_path(place.path)
    await write_file(here, who.team, sandbox, place, form.content())
    return Response(status_code=204)


async def _spooled(file: UploadFile) -> AsyncIterator[bytes]:
    while chunk := await file.read(_CHUNK):
        yield chunk


def _limited(request: Request) -> Receive:
    room = MAX_FORM_BYTES

    async def receive() -> Message:
        nonlocal room
        message = await request.receive()
        room -= len(message.get("body", b""))
        if room < 0:
            raise _form_too_large()
        return message

    return receive


def _form_too_large() -> TooLarge:
    return TooLarge("A form must not be larger than 100 MiB; use files/stream/write or PUT files.")
