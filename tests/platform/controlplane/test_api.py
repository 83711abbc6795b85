"""The API over HTTP: what callers get, and what they get told."""

from __future__ import annotations

import base64
import json
import threading
import time

import httpx
import pytest

from tests.platform.controlplane.conftest import Plane, until
from wrenn_sandbox.core.errors import Exhausted, Unavailable
from wrenn_sandbox.core.ids import SandboxId

pytestmark = pytest.mark.platform


def error_of(answer: httpx.Response) -> tuple[int, str]:
    body = answer.json()
    assert set(body) == {"error"} and set(body["error"]) == {"code", "message"}
    assert body["error"]["message"].endswith("."), body
    assert answer.headers["x-request-id"]
    return answer.status_code, body["error"]["code"]


def test_a_sandbox_from_create_to_destroy(plane: Plane) -> None:
    answer = plane.client.post(
        "/v1/sandboxes",
        json={"template": "minimal", "metadata": {"team": "ml"}, "envs": {"COLOUR": "blue"}, "ends_in_sec": 60},
    )
    made = answer.json()
    assert answer.status_code == 201 and made["status"] == "running" and made["template"] == "minimal"
    assert made["id"].startswith("sb-") and made["host_ip"] == "10.11.0.1" and made["ends_at"].endswith("Z")
    assert [phase["name"] for phase in made["phases"]] == ["restore", "init"]
    request = plane.agent.machines[made["id"]].request
    assert request.template == "base" and request.team_id and len(request.access_token) == 64
    assert "access_token" not in answer.text and request.access_token not in answer.text

    path = f"/v1/sandboxes/{made['id']}"
    ran = plane.client.post(f"{path}/exec", json={"cmd": "sh", "args": ["-c", "echo $COLOUR; echo oh >&2; exit 3"]})
    assert ran.status_code == 200
    wanted = {"stdout": "blue\n", "stderr": "oh\n", "exit_code": 3, "encoding": "utf-8", "truncated": False}
    assert wanted.items() <= ran.json().items()

    assert plane.client.delete(path).status_code == 204
    assert plane.agent.machines == {}
    assert plane.client.get(path).json()["status"] == "stopped"
    assert plane.client.delete(path).status_code == 204  # again, it does nothing
    assert error_of(plane.client.post(f"{path}/exec", json={"cmd": "true"})) == (409, "invalid_state")


def test_every_form_of_an_id_names_the_same_sandbox(plane: Plane, sandbox: str) -> None:
    identity = SandboxId.parse(sandbox)
    for form in (sandbox, f"cl-{identity.value}", f"sb-{identity.base36}", f"cl-{identity.base36}"):
        assert plane.client.get(f"/v1/sandboxes/{form}").json()["id"] == sandbox
        assert plane.client.get(f"/v1/capsules/{form}").json()["id"] == f"cl-{identity.base36}"
    listed = plane.client.get("/v1/capsules").json()
    assert [item["id"] for item in listed] == [f"cl-{identity.base36}"]


def test_listing_pages_and_filters(plane: Plane) -> None:
    ids = [plane.create(metadata={"n": str(n), "even": str(n % 2 == 0)}) for n in range(5)]
    seen, cursor = [], ""
    while True:
        page = plane.client.get("/v1/sandboxes", params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        seen += [item["id"] for item in page["items"]]
        if not (cursor := page.get("next_cursor", "")):
            break
    assert seen == ids[::-1]
    even = plane.client.get("/v1/sandboxes?metadata.even=True").json()["items"]
    assert [item["metadata"]["n"] for item in even] == ["4", "2", "0"]
    plane.client.delete(f"/v1/sandboxes/{ids[0]}")
    assert ids[0] not in plane.client.get("/v1/sandboxes").text
    assert ids[0] in plane.client.get("/v1/sandboxes?state=stopped,error").text
    capsules = plane.client.get("/v1/capsules?limit=1")
    assert len(capsules.json()) == 1 and capsules.headers["x-next-cursor"]


def test_output_that_is_no_text_comes_as_base64(plane: Plane, sandbox: str) -> None:
    body = {"cmd": "sh", "args": ["-c", r"printf '\377\000'; printf plain >&2"]}
    ran = plane.client.post(f"/v1/sandboxes/{sandbox}/exec", json=body).json()
    assert ran["encoding"] == "base64"
    assert base64.b64decode(ran["stdout"]) == b"\xff\0" and base64.b64decode(ran["stderr"]) == b"plain"


def test_stdin_cwd_and_envs_reach_the_command(plane: Plane, sandbox: str) -> None:
    body = {"cmd": "sh", "args": ["-c", "cat; pwd; echo $A"], "stdin": "aGkK", "stdin_encoding": "base64"}
    ran = plane.client.post(f"/v1/sandboxes/{sandbox}/exec", json=body | {"cwd": "/tmp", "envs": {"A": "b c"}})
    assert ran.json()["stdout"] == "hi\n/tmp\nb c\n"


def test_a_command_out_of_time_keeps_its_output(plane: Plane, sandbox: str) -> None:
    ran = plane.client.post(f"/v1/sandboxes/{sandbox}/exec", json={"cmd": "sleep", "args": ["600"], "timeout_sec": 1})
    assert ran.status_code == 200
    assert {"stdout": "so far\n", "interrupted": "command_timeout", "exit_code": -1}.items() <= ran.json().items()


def test_background_processes(plane: Plane, sandbox: str) -> None:
    path = f"/v1/sandboxes/{sandbox}"
    body = {"cmd": "sleep", "args": ["600"], "background": True}
    first = plane.client.post(f"{path}/exec", json=body)
    assert first.status_code == 202 and first.json()["tag"].startswith("proc-")
    second = plane.client.post(f"{path}/exec", json=body | {"tag": "mine"}).json()
    listed = plane.client.get(f"{path}/processes").json()["processes"]
    assert {p["tag"] for p in listed} == {first.json()["tag"], "mine"}
    assert listed[0]["cmd"] == "sleep" and listed[0]["args"] == ["600"]
    assert plane.client.delete(f"{path}/processes/mine?signal=SIGTERM").status_code == 204
    assert plane.client.delete(f"{path}/processes/{first.json()['pid']}").status_code == 204
    until(lambda: plane.client.get(f"{path}/processes").json()["processes"] == [])
    assert error_of(plane.client.delete(f"{path}/processes/mine2")) == (404, "process_not_found")
    assert error_of(plane.client.delete(f"{path}/processes/{second['pid']}?signal=SIGHUP")) == (400, "invalid_request")


def test_timeouts_can_be_changed(plane: Plane, sandbox: str) -> None:
    path = f"/v1/sandboxes/{sandbox}"
    changed = plane.client.patch(path, json={"timeout_sec": 0, "idle_action": "kill", "ends_in_sec": 100})
    assert changed.status_code == 200 and changed.json()["timeout_sec"] == 0 and "ends_at" in changed.json()
    lifetime = plane.agent.machines[sandbox].lifetime
    assert lifetime is not None and lifetime.idle_timeout_s == 0 and lifetime.ends_at_unix > time.time()
    assert "ends_at" not in plane.client.patch(path, json={"ends_at": None}).json()
    assert plane.client.get(path).json()["idle_action"] == "kill"
    assert error_of(plane.client.patch(path, json={"ends_at": "2001-01-01T00:00:00Z"})) == (400, "invalid_request")
    assert plane.client.post(f"{path}/ping").status_code == 204


def test_keys_are_shown_once_and_end_at_once(plane: Plane) -> None:
    made = plane.client.post("/v1/api-keys", json={"name": "ci"}).json()
    assert made["key"].startswith(made["key_prefix"]) and len(made["key"]) == 36
    with httpx.Client(base_url=plane.url, headers={"X-API-Key": made["key"]}) as other:
        listed = other.get("/v1/api-keys").json()
        assert made["id"] in [key["id"] for key in listed] and made["key"] not in json.dumps(listed)
        as_e2b = {"X-API-Key": made["key"].replace("wrn_", "e2b_")}
        assert other.get("/v1/sandboxes", headers=as_e2b).status_code == 200
        assert plane.client.delete(f"/v1/api-keys/{made['id']}").status_code == 204
        assert error_of(other.get("/v1/sandboxes")) == (401, "unauthorized")
    assert error_of(plane.client.delete(f"/v1/api-keys/{made['id']}")) == (404, "not_found")
    (last,) = plane.client.get("/v1/api-keys").json()
    assert error_of(plane.client.delete(f"/v1/api-keys/{last['id']}")) == (409, "last_key")
    assert plane.client.get("/v1/api-keys").status_code == 200


@pytest.mark.parametrize("key", [None, "", "nonsense", "wrn_" + "0" * 32, "wrn_" + "G" * 32, "Bearer x"])
def test_without_a_known_key_there_is_nothing(plane: Plane, key: str | None) -> None:
    with httpx.Client(base_url=plane.url, headers={} if key is None else {"X-API-Key": key}) as stranger:
        for method, path in (("GET", "/v1/sandboxes"), ("POST", "/v1/sandboxes"), ("GET", "/v1/hosts/current")):
            assert error_of(stranger.request(method, path)) == (401, "unauthorized")
        assert stranger.get("/health").status_code == 200


def test_another_teams_sandbox_is_not_found(plane: Plane, sandbox: str) -> None:
    stranger = other_team(plane)
    with httpx.Client(base_url=plane.url, headers={"X-API-Key": stranger}) as other:
        path = f"/v1/sandboxes/{sandbox}"
        tries = [
            other.get(path),
            other.delete(path),
            other.patch(path, json={"timeout_sec": 1}),
            other.post(f"{path}/exec", json={"cmd": "true"}),
            other.post(f"{path}/ping"),
            other.get(f"{path}/processes"),
            other.delete(f"{path}/processes/1"),
            other.get(f"{path}/files", params={"path": "x"}),
            other.put(f"{path}/files", params={"path": "x"}, content=b"x"),
            other.post(f"{path}/files/read", json={"path": "x"}),
        ]
        assert [error_of(answer) for answer in tries] == [(404, "not_found")] * len(tries)
        assert other.get("/v1/sandboxes").json() == {"items": []}
    assert plane.status(sandbox) == "running"
    assert not {"Exec", "DestroySandbox", "WriteFileStream"} & set(plane.agent.calls)


def other_team(plane: Plane) -> str:
    """The key of a second team, written straight into the database."""
    import hashlib
    import sqlite3
    import uuid

    secret = uuid.uuid4().hex
    with sqlite3.connect(plane.folder / "wrenn.db", timeout=10) as database:
        team, user = str(uuid.uuid4()), str(uuid.uuid4())
        database.execute("INSERT INTO teams (id, name, slug) VALUES (?, 'Other', ?)", (team, team))
        database.execute("INSERT INTO users (id, email) VALUES (?, ?)", (user, user))
        database.execute(
            "INSERT INTO team_api_keys (id, team_id, name, key_hash, key_prefix, created_by) VALUES (?,?,?,?,?,?)",
            (str(uuid.uuid4()), team, "k", hashlib.sha256(f"wrn_{secret}".encode()).hexdigest(), "wrn_", user),
        )
    database.close()
    return f"wrn_{secret}"


def test_a_full_host_says_when_to_come_back(plane: Plane) -> None:
    plane.agent.fail["CreateSandbox"] = Exhausted("The host is full; destroy a sandbox or wait.", retry_after_s=7)
    answer = plane.client.post("/v1/sandboxes", json={})
    assert error_of(answer) == (503, "host_full") and answer.headers["retry-after"] == "7"
    (row,) = plane.client.get("/v1/sandboxes?state=error").json()["items"]
    assert row["status_slug"] == "host_full" and plane.agent.machines == {}


def test_a_host_that_does_not_answer_is_said_to(plane: Plane, sandbox: str) -> None:
    plane.agent.fail["Exec"] = Unavailable("x", slug="peer_broken")
    answer = plane.client.post(f"/v1/sandboxes/{sandbox}/exec", json={"cmd": "true"})
    assert error_of(answer) == (503, "host_unavailable") and answer.headers["retry-after"]


def test_a_client_that_goes_away_leaves_no_half_made_sandbox(plane: Plane) -> None:
    plane.agent.delay_s["CreateSandbox"] = 0.5
    with pytest.raises(httpx.ReadTimeout):
        plane.client.post("/v1/sandboxes", json={"metadata": {"who": "gone"}}, timeout=0.2)
    until(lambda: plane.client.get("/v1/sandboxes?metadata.who=gone&state=running").json()["items"])
    (row,) = plane.client.get("/v1/sandboxes?metadata.who=gone").json()["items"]
    assert plane.agent.machines[row["id"]].status == "running"


def test_destroying_what_is_being_made_wins(plane: Plane) -> None:
    plane.agent.delay_s["CreateSandbox"] = 1.0
    answers: list[httpx.Response] = []
    maker = threading.Thread(target=lambda: answers.append(plane.client.post("/v1/sandboxes", json={})))
    maker.start()
    until(lambda: plane.agent.machines)
    (sandbox,) = plane.agent.machines
    assert plane.client.delete(f"/v1/sandboxes/{sandbox}").status_code == 204
    maker.join()
    assert answers[0].status_code == 409
    assert plane.status(sandbox) == "stopped" and plane.agent.machines == {}


def test_twenty_at_once(plane: Plane) -> None:
    answers: list[httpx.Response] = []

    def make() -> None:
        answers.append(plane.client.post("/v1/sandboxes", json={"metadata": {"many": "yes"}}))

    threads = [threading.Thread(target=make) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [201] * 20
    assert len(plane.client.get("/v1/sandboxes?metadata.many=yes").json()["items"]) == 20


def test_the_document_and_the_page_need_nothing_from_elsewhere(plane: Plane) -> None:
    assert plane.client.get("/openapi.json").json()["paths"]
    page = plane.client.get("/docs")
    assert page.status_code == 200 and "/v1/sandboxes/{sandbox_id}/pty" in page.text
    assert "http://" not in page.text and "https://" not in page.text and "<script" not in page.text


def test_the_host_is_described(plane: Plane) -> None:
    host = plane.client.get("/v1/hosts/current").json()
    assert host["driver"] == "stand-in" and host["templates"][0]["status"] == "ready"
    until(lambda: plane.client.get("/health").json()["host"] == "online")


def test_a_request_id_is_kept_when_harmless(plane: Plane) -> None:
    assert plane.client.get("/health", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert len(plane.client.get("/health", headers={"X-Request-Id": "a b"}).headers["x-request-id"]) == 32
