import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrenn_sandbox.net.services import dns
from wrenn_sandbox.net.services.dns import (
    Forwarder,
    Rcode,
    Upstream,
    failure,
    is_answer_to,
    is_query,
    parse_resolvers,
    question_end,
    refusal_of,
)

QUERY = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03com\x00\x00\x01\x00\x01"
RECORD = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\x01\x02\x03\x04"
RESPONSE = QUERY[:2] + b"\x81\x80\x00\x01\x00\x01\x00\x00\x00\x00" + QUERY[12:] + RECORD
EDNS = QUERY[:11] + b"\x01" + QUERY[12:] + b"\x00\x00\x29\x10\x00\x00\x00\x00\x00\x00\x00"


def test_the_question_ends_before_other_records() -> None:
    assert question_end(QUERY) == len(QUERY)
    assert question_end(EDNS) == len(QUERY)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        QUERY[:11],
        QUERY[:-1],
        QUERY[:4] + b"\x00\x00" + QUERY[6:],
        QUERY[:4] + b"\x00\x02" + QUERY[6:],
        QUERY[:12] + b"\xc0\x0c\x00\x01\x00\x01",
        QUERY[:12] + b"\x3fshort",
        QUERY[:12] + (b"\x3f" + b"a" * 63) * 5 + b"\x00\x00\x01\x00\x01",
    ],
)
def test_malformed_questions_are_seen(message: bytes) -> None:
    assert question_end(message) is None


@given(st.binary(max_size=600))
def test_no_message_breaks_the_reader(message: bytes) -> None:
    end = question_end(message)
    assert end is None or 12 < end <= len(message)
    if is_query(message):
        response = failure(message, Rcode.FORMERR)
        assert response[:2] == message[:2]
        assert response[2] & 0x80
        assert len(response) <= max(len(message), 12)


def test_failures_repeat_the_question() -> None:
    response = failure(QUERY, Rcode.SERVFAIL)
    assert response[2:4] == b"\x81\x82"
    assert response[12:] == QUERY[12:]
    assert is_answer_to(response, QUERY)


def test_only_plain_queries_are_forwarded() -> None:
    assert refusal_of(QUERY) is None
    assert refusal_of(EDNS) is None
    assert refusal_of(QUERY[:20]) is Rcode.FORMERR
    assert refusal_of(QUERY[:2] + b"\x28" + QUERY[3:]) is Rcode.NOTIMP  # UPDATE


def test_only_the_answer_to_the_question_counts() -> None:
    assert is_answer_to(RESPONSE, QUERY)
    assert is_answer_to(RESPONSE.replace(b"example", b"EXAMPLE"), QUERY), "a resolver may change the case"
    assert not is_answer_to(b"\x00\x00" + RESPONSE[2:], QUERY)
    assert not is_answer_to(QUERY, QUERY)
    assert not is_answer_to(RESPONSE.replace(b"example", b"another"), QUERY)
    assert not is_answer_to(RESPONSE[:11], QUERY)


def test_an_answer_without_question_counts_only_as_an_error() -> None:
    empty = b"\x00\x00" * 4
    assert is_answer_to(QUERY[:2] + b"\x81\x85" + empty, QUERY)
    assert not is_answer_to(QUERY[:2] + b"\x81\x80" + empty, QUERY)


def test_resolvers_are_read_as_resolv_conf_says() -> None:
    text = (
        "# nameserver 9.9.9.9\nsearch a b\nnameserver 1.1.1.1\n nameserver fe80::1%eth0\nnameserver bad\nnameserver\n"
    )
    assert parse_resolvers(text) == ("1.1.1.1", "fe80::1%eth0")
    assert parse_resolvers("nameserver 1.1.1.1\n" * 5) == ("1.1.1.1",) * 3


def test_the_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    upstream = Upstream(path)
    assert upstream.resolvers() == ()
    path.write_text("nameserver 1.1.1.1\n")
    assert upstream.resolvers() == ("1.1.1.1",)
    (tmp_path / "new").write_text("nameserver 2.2.2.2\n")
    (tmp_path / "new").rename(path)
    assert upstream.resolvers() == ("2.2.2.2",)
    path.unlink()
    assert upstream.resolvers() == ()


class Script:
    """Resolvers that answer as written; remembers whom it asked what."""

    def __init__(self, answers: dict[str, bytes | Exception]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, bytes]] = []

    async def __call__(self, resolver: str, port: int, query: bytes) -> bytes:
        self.asked.append((resolver, query))
        answer = self.answers[resolver]
        if isinstance(answer, Exception):
            raise answer
        return query[:2] + answer[2:]


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 1.1.1.1\nnameserver 2.2.2.2\n")
    return path


def test_the_next_resolver_is_asked_when_one_fails(monkeypatch: pytest.MonkeyPatch, conf: Path) -> None:
    script = Script({"1.1.1.1": ConnectionRefusedError(), "2.2.2.2": RESPONSE})
    monkeypatch.setattr(dns, "_exchange_datagram", script)
    assert asyncio.run(Upstream(conf).ask(QUERY, stream=False)) == RESPONSE
    assert [resolver for resolver, _ in script.asked] == ["1.1.1.1", "2.2.2.2"]
    assert all(query[2:] == QUERY[2:] for _, query in script.asked)


def test_all_failing_is_a_server_failure(monkeypatch: pytest.MonkeyPatch, conf: Path) -> None:
    script = Script({"1.1.1.1": TimeoutError(), "2.2.2.2": EOFError()})
    monkeypatch.setattr(dns, "_exchange_stream", script)
    assert asyncio.run(Upstream(conf).ask(QUERY, stream=True)) == failure(QUERY, Rcode.SERVFAIL)
    assert len(script.asked) == 4


def test_queries_leave_with_an_id_of_ours(monkeypatch: pytest.MonkeyPatch, conf: Path) -> None:
    script = Script({"1.1.1.1": RESPONSE})
    monkeypatch.setattr(dns, "_exchange_datagram", script)
    upstream = Upstream(conf)

    async def many() -> None:
        for _ in range(8):
            assert (await upstream.ask(QUERY, stream=False))[:2] == QUERY[:2]

    asyncio.run(many())
    assert len({query[:2] for _, query in script.asked}) > 1


def test_a_closed_sandbox_is_refused(monkeypatch: pytest.MonkeyPatch, conf: Path) -> None:
    monkeypatch.setattr(dns, "_exchange_datagram", Script({"1.1.1.1": RESPONSE}))
    forwarder = Forwarder(Upstream(conf))
    assert asyncio.run(forwarder.resolve(QUERY, stream=False)) == RESPONSE
    forwarder.open = False
    assert asyncio.run(forwarder.resolve(QUERY, stream=False)) == failure(QUERY, Rcode.REFUSED)


def test_responses_and_fragments_get_silence(conf: Path) -> None:
    forwarder = Forwarder(Upstream(conf))
    assert asyncio.run(forwarder.resolve(RESPONSE, stream=False)) is None
    assert asyncio.run(forwarder.resolve(QUERY[:11], stream=False)) is None


def test_queries_under_way_are_bounded(monkeypatch: pytest.MonkeyPatch, conf: Path) -> None:
    async def scene() -> None:
        release = asyncio.Event()

        async def slow(resolver: str, port: int, query: bytes) -> bytes:
            await release.wait()
            return query[:2] + RESPONSE[2:]

        monkeypatch.setattr(dns, "_exchange_datagram", slow)
        forwarder = Forwarder(Upstream(conf))
        async with asyncio.TaskGroup() as group:
            waiting = [group.create_task(forwarder.resolve(QUERY, stream=False)) for _ in range(64)]
            await asyncio.sleep(0)
            assert await forwarder.resolve(QUERY, stream=False) == failure(QUERY, Rcode.SERVFAIL)
            release.set()
        assert all(task.result() == RESPONSE for task in waiting)
        assert await forwarder.resolve(QUERY, stream=False) == RESPONSE

    asyncio.run(scene())
