from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field

import aiohttp
import pytest

from wrenn_sandbox.core.errors import (
    Bug,
    Denied,
    Invalid,
    NoSpace,
    NotFound,
    Timeout,
    TooLarge,
    Unavailable,
    WrennError,
)
from wrenn_sandbox.hostagent.guest import FileSource, Guest, Identity

IDENTITY = Identity("sb-1", "tpl", "tok", "a" * 32, b"e" * 32, 1.5, {"A": "1"}, "", "")


@dataclass
class Answer:
    status: int = 204
    body: bytes = b""
    closed: bool = False
    content_length: int | None = None

    @property
    def content(self):
        return Body([self.body])

    async def read(self) -> bytes:
        return self.body

    async def text(self) -> str:
        return self.body.decode()

    def close(self) -> None:
        self.closed = True


@dataclass
class Body:
    pieces: list[bytes | Exception]

    async def read(self, limit: int) -> bytes:
        piece = self.pieces.pop(0) if self.pieces else b""
        if isinstance(piece, Exception):
            raise piece
        return piece


class Call:
    """What aiohttp gives: a context and an awaitable."""

    def __init__(self, outcome: Answer | Exception) -> None:
        self.outcome = outcome

    def __await__(self):
        yield from ()
        return self._result()

    async def __aenter__(self) -> Answer:
        return self._result()

    async def __aexit__(self, *_: object) -> None:
        return None

    def _result(self) -> Answer:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@dataclass
class Session:
    outcomes: list[Answer | Exception]
    calls: list[tuple[str, str, dict]] = field(default_factory=list)

    def request(self, method: str, url: str, **options: object) -> Call:
        self.calls.append((method, url, options))
        return Call(self.outcomes.pop(0))

    def get(self, url: str, **options: object) -> Call:
        return self.request("GET", url, **options)

    def post(self, url: str, **options: object) -> Call:
        return self.request("POST", url, **options)


def refused() -> Exception:
    return aiohttp.ClientConnectorError(None, OSError("refused"))  # type: ignore[arg-type]


def test_init_is_tried_again_until_the_guest_answers(run) -> None:
    async def work() -> None:
        session = Session([refused(), aiohttp.ServerDisconnectedError(), Answer(204)])
        await Guest(session, "10.0.0.1", "tok").initialise(IDENTITY, limit_s=5)
        assert [call[:2] for call in session.calls] == [("POST", "http://10.0.0.1:49983/init")] * 3
        body = json.loads(session.calls[-1][2]["data"])
        assert base64.b64decode(body["entropy"]) == b"e" * 32
        assert (body["sandboxId"], body["accessToken"], body["envVars"]) == ("sb-1", "tok", {"A": "1"})
        assert body["timestamp"] == "1970-01-01T00:00:01.500000+00:00" and "defaultUser" not in body
        assert "x-access-token" not in session.calls[-1][2]["headers"], "the guest has no token yet"

    run(work)


@pytest.mark.parametrize("status", [200, 400, 401, 500, 503])
def test_a_guest_that_refuses_its_identity_is_not_used(run, status: int) -> None:
    async def work() -> None:
        guest = Guest(Session([Answer(status, b"why")]), "h", "tok")
        if status == 200:
            await guest.initialise(IDENTITY, limit_s=5)
            return
        with pytest.raises(Unavailable) as failed:
            await guest.initialise(IDENTITY, limit_s=5)
        assert failed.value.slug == "guest_init_failed" and "why" in failed.value.message

    run(work)


def test_a_guest_that_never_answers_is_given_up(run) -> None:
    async def work() -> None:
        session = Session([refused()] * 1000)
        for ask in (
            Guest(session, "h", "").initialise(IDENTITY, limit_s=0),
            Guest(session, "h", "").healthy(limit_s=0),
        ):
            with pytest.raises(Unavailable) as failed:
                await ask
            assert failed.value.slug == "guest_unreachable"

    run(work)


def test_prepare_must_be_answered_with_204(run) -> None:
    async def work() -> None:
        await Guest(Session([Answer(204)]), "h", "").prepare_snapshot(limit_s=5)
        older = Answer(404)  # a guest from before there was such a thing
        for outcome, kind in (
            (Answer(500), Unavailable),
            (older, Unavailable),
            (refused(), Unavailable),
            (TimeoutError(), Timeout),
        ):
            with pytest.raises(kind):
                await Guest(Session([outcome]), "h", "").prepare_snapshot(limit_s=5)

    run(work)


@pytest.mark.parametrize(
    ("status", "kind", "slug"),
    [
        (400, Invalid, "invalid_path"),
        (401, Invalid, "invalid_user"),
        (403, Denied, "file_access_denied"),
        (404, NotFound, "file_not_found"),
        (413, TooLarge, "too_large"),
        (507, NoSpace, "no_space"),
        (500, Unavailable, "guest_error"),
        (418, Bug, "guest_error"),
    ],
)
def test_file_errors_by_status(run, status: int, kind: type[WrennError], slug: str) -> None:
    async def work() -> None:
        answer = Answer(status, b'{"message":"because"}')
        with pytest.raises(kind) as failed:
            async with Guest(Session([answer]), "h", "t").reading("/a", ""):
                pass
        assert (failed.value.slug, failed.value.message) == (slug, "because") and answer.closed
        with pytest.raises(kind):
            await Guest(Session([Answer(status, b"no json")]), "h", "t").write("/a", "", b"x")

    run(work)


def test_the_guests_own_slug_wins(run) -> None:
    async def work() -> None:
        answer = Answer(400, b'{"message":"it is a directory","error_code":"is_directory"}')
        with pytest.raises(Invalid) as failed:
            await Guest(Session([answer]), "h", "t").write("/a", "", b"x")
        assert failed.value.slug == "is_directory"

    run(work)


def test_reading_closes_its_connection_also_when_left_early(run) -> None:
    async def work() -> None:
        answer = Answer(200, b"content", content_length=7)
        session = Session([answer])
        async with Guest(session, "h", "tok").reading("/a b&c", "root") as source:
            assert source.size == 7
        assert answer.closed
        _, url, options = session.calls[0]
        assert url == "http://h:49983/files?path=%2Fa+b%26c&username=root"
        assert options["headers"] == {"x-access-token": "tok", "accept-encoding": "identity"}

    run(work)


@pytest.mark.parametrize(
    ("error", "kind"),
    [(TimeoutError(), Timeout), (aiohttp.ClientPayloadError(), Unavailable), (OSError(), Unavailable)],
)
def test_a_file_that_breaks_off(run, error: Exception, kind: type[WrennError]) -> None:
    async def work() -> None:
        seen = []
        with pytest.raises(kind):
            async for chunk in FileSource(Body([b"first", error]), None).chunks():
                seen.append(chunk)
        assert seen == [b"first"]

    run(work)


def test_an_error_of_the_contents_source_is_not_the_guests_fault(run) -> None:
    async def work() -> None:
        broken = aiohttp.ClientConnectionError()
        broken.__cause__ = Invalid("bad content", slug="invalid_stream")
        with pytest.raises(Invalid) as failed:
            await Guest(Session([broken]), "h", "t").write("/a", "", b"x")
        assert failed.value.slug == "invalid_stream"

    run(work)


def test_no_secret_is_in_a_repr() -> None:
    shown = repr(Identity("sb-1", "tpl", "hidden", "a" * 32, b"hidden" * 8, 1.5, {"KEY": "hidden"}, "", ""))
    assert "sb-1" in shown and "hidden" not in shown
