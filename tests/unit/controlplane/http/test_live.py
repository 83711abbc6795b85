from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import TypeAdapter
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from wrenn_sandbox.controlplane.http import auth, live
from wrenn_sandbox.controlplane.http.live import Live, live_endpoint
from wrenn_sandbox.core.errors import NotFound, Unauthenticated

PATH = "/x/sb-00000000-0000-4000-8000-000000000000"


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """Endpoints that do what their first message says; the key is ``good``."""

    async def recognise(_platform: object, presented: str) -> Any:
        if presented != "good":
            raise Unauthenticated("This key is not known.")
        return presented

    async def handler(socket: Live) -> None:
        match await socket.receive(TypeAdapter(dict[str, Any])):
            case {"do": "echo", "what": what}:
                await socket.send(type="echo", data=what)
            case {"do": "fail"}:
                raise NotFound("There is nothing.")
            case {"do": "break"}:
                raise RuntimeError("secret detail")

    monkeypatch.setattr(live, "recognise", recognise)
    monkeypatch.setattr(auth, "recognise", recognise)
    app = FastAPI()
    app.state.platform = None
    app.add_api_websocket_route("/x/{sandbox_id}", live_endpoint(handler))
    return TestClient(app)


def ending(socket: Any) -> int:
    with pytest.raises(WebSocketDisconnect) as caught:
        socket.receive_text()
    return caught.value.code


def test_a_conversation_that_ends_well(client: TestClient) -> None:
    with client.websocket_connect(PATH, headers={"X-API-Key": "good"}) as socket:
        socket.send_json({"do": "echo", "what": "ü"})
        assert socket.receive_json() == {"type": "echo", "data": "ü"}
        assert ending(socket) == 1000


def test_a_typed_error_is_a_message_and_a_close_code(client: TestClient) -> None:
    with client.websocket_connect(PATH, headers={"X-API-Key": "good"}) as socket:
        socket.send_json({"do": "fail"})
        wanted = {"type": "error", "code": "not_found", "data": "There is nothing.", "fatal": True}
        assert socket.receive_json() == wanted
        assert ending(socket) == 4404


def test_a_bug_tells_nothing_about_itself(client: TestClient) -> None:
    with client.websocket_connect(PATH, headers={"X-API-Key": "good"}) as socket:
        socket.send_json({"do": "break"})
        text = socket.receive_text()
        assert json.loads(text)["code"] == "internal_error" and "secret" not in text
        assert ending(socket) == 4500


@pytest.mark.parametrize("message", ['"x"', "{", "[]", '{"type": "auth"}', '{"type": "no", "token": "good"}'])
def test_the_first_message_must_authenticate(client: TestClient, message: str) -> None:
    with client.websocket_connect(PATH) as socket:
        socket.send_text(message)
        assert socket.receive_json()["code"] == "unauthorized"
        assert ending(socket) == 4401


def test_the_first_message_may_carry_the_key(client: TestClient) -> None:
    with client.websocket_connect(PATH) as socket:
        socket.send_json({"type": "auth", "token": "good"})
        socket.send_json({"do": "echo", "what": 1})
        assert socket.receive_json()["data"] == 1


def test_binary_frames_and_nonsense_are_invalid(client: TestClient) -> None:
    for send in ("send_bytes", "send_text"):
        with client.websocket_connect(PATH, headers={"X-API-Key": "good"}) as socket:
            getattr(socket, send)(b"\xff" if send == "send_bytes" else "{")
            assert socket.receive_json()["code"] == "invalid_request"
            assert ending(socket) == 4400


def test_messages_have_a_bound(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MAX_MESSAGE", 40)
    with client.websocket_connect(PATH, headers={"X-API-Key": "good"}) as socket:
        socket.send_json({"do": "echo", "what": "x" * 40})
        assert socket.receive_json()["code"] == "invalid_request"
        assert ending(socket) == 4400


def test_a_page_of_a_stranger_needs_the_key_too(client: TestClient) -> None:
    with client.websocket_connect(PATH, headers={"Origin": "https://elsewhere.test", "Cookie": "key=good"}) as socket:
        socket.send_json({"do": "echo", "what": 1})
        assert socket.receive_json()["code"] == "unauthorized"
        assert ending(socket) == 4401


def test_a_client_that_leaves_is_no_error(client: TestClient) -> None:
    with client.websocket_connect(PATH, headers={"X-API-Key": "good"}):
        pass


@pytest.mark.parametrize(("path", "key", "status"), [(PATH, "bad", 401), ("/x/nonsense", "good", 400)])
def test_what_is_wrong_from_the_start_is_not_upgraded(client: TestClient, path: str, key: str, status: int) -> None:
    with pytest.raises(WebSocketDenialResponse) as caught, client.websocket_connect(path, headers={"X-API-Key": key}):
        pass
    assert caught.value.status_code == status and caught.value.json()["error"]["message"]


def test_who_says_nothing_is_sent_away(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "AUTH_S", 0.0)
    with client.websocket_connect(PATH) as socket:
        assert socket.receive_json()["code"] == "unauthorized"
        assert ending(socket) == 4401
