from __future__ import annotations

import pytest

from wrenn_sandbox.core.errors import Unauthenticated
from wrenn_sandbox.envd import auth

PATH, USER, TOKEN = "/home/user/a.txt", "root", "tok"
PLAIN = "v1_emiFpeHx85Fbbn1F9SNPcXSM3JkhE4V9ibA3l01wpPg"
EXPIRING = "v1_Yw20/qJPpezEJ+2zNAZJL5w9HlpsSulOs4OmKhIbDkA"


def check(token: str, method: str, path: str, offered: bytes = b"", /, *, now_s: float = 0, **query: str) -> None:
    auth.check_request(token, method, path, offered, query=query, now_s=now_s)


def test_signature_vectors() -> None:
    assert auth.sign(PATH, "read", USER, TOKEN) == PLAIN
    assert auth.sign(PATH, "read", USER, TOKEN, "1700000000") == EXPIRING


@pytest.mark.parametrize("route", sorted(auth.OPEN_ROUTES))
@pytest.mark.parametrize("token", ["", TOKEN])
def test_open_routes_need_nothing(route: tuple[str, str], token: str) -> None:
    check(token, *route)
    check(token, *route, b"wrong")


@pytest.mark.parametrize("route", [("GET", "/files"), ("POST", "/process.Process/Start"), ("GET", "/metrics")])
def test_nothing_else_answers_before_there_is_a_token(route: tuple[str, str]) -> None:
    for offered in (b"", b"anything"):
        with pytest.raises(Unauthenticated) as caught:
            check("", *route, offered)
        assert caught.value.slug == "not_initialized"


@pytest.mark.parametrize(
    "route", [("GET", "/files"), ("POST", "/process.Process/Start"), ("GET", "/x"), ("POST", "/health")]
)
def test_the_rest_needs_the_token(route: tuple[str, str]) -> None:
    check(TOKEN, *route, TOKEN.encode())
    for offered in (b"", b"to", b"tokk", b"TOK"):
        with pytest.raises(Unauthenticated):
            check(TOKEN, *route, offered)


def test_a_signature_opens_its_own_file_operation_only() -> None:
    query = {"path": PATH, "username": USER, "signature": PLAIN}
    check(TOKEN, "GET", "/files", **query)
    check(TOKEN, "GET", "/files", b"wrong token", **query)
    for method, path in (("POST", "/files"), ("GET", "/metrics")):
        with pytest.raises(Unauthenticated):
            check(TOKEN, method, path, **query)
    for changed in ({"path": "/etc/shadow"}, {"username": ""}, {"signature": PLAIN[:-1]}, {"signature": "é"}):
        with pytest.raises(Unauthenticated):
            check(TOKEN, "GET", "/files", **{**query, **changed})
    check(TOKEN, "POST", "/files", **{**query, "signature": auth.sign(PATH, "write", USER, TOKEN)})


def test_a_signature_ends_with_its_time() -> None:
    query = {"path": PATH, "username": USER, "signature": EXPIRING, "signature_expiration": "1700000000"}
    check(TOKEN, "GET", "/files", now_s=1_700_000_000, **query)
    with pytest.raises(Unauthenticated) as caught:
        check(TOKEN, "GET", "/files", now_s=1_700_000_001, **query)
    assert caught.value.message == "signature is already expired"
    with pytest.raises(Unauthenticated) as caught:  # a later time is not what was signed
        check(TOKEN, "GET", "/files", now_s=1_700_000_001, **{**query, "signature_expiration": "1800000000"})
    assert caught.value.slug == "invalid_signature"


def test_an_expiration_that_is_no_number_is_over() -> None:
    signature = auth.sign(PATH, "read", "", TOKEN, "soon")
    with pytest.raises(Unauthenticated) as caught:
        check(TOKEN, "GET", "/files", path=PATH, signature=signature, signature_expiration="soon")
    assert caught.value.slug == "signature_expired"


def test_init_needs_the_token_there_is() -> None:
    auth.check_init("", "", b"")
    auth.check_init("", "new", b"")
    auth.check_init(TOKEN, TOKEN, b"")
    auth.check_init(TOKEN, "another", TOKEN.encode())
    auth.check_init(TOKEN, "", TOKEN.encode())
    for in_body, in_header in (("", b""), ("another", b""), ("another", b"another")):
        with pytest.raises(Unauthenticated):
            auth.check_init(TOKEN, in_body, in_header)
