"""Bad input, each tried: a typed error with a stable code, and nothing left behind."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.platform.controlplane.conftest import Plane

pytestmark = pytest.mark.platform

ZERO = "sb-00000000-0000-4000-8000-000000000000"
SANDBOX = "{sandbox}"
LONG = "x" * 200_000

BAD_CREATES: list[tuple[dict[str, Any], int, str]] = [
    ({"vcpus": 0}, 400, "invalid_size"),
    ({"vcpus": -1}, 400, "invalid_size"),
    ({"vcpus": 10_000}, 400, "invalid_size"),
    ({"vcpus": 10**40}, 400, "invalid_size"),
    ({"vcpus": "1"}, 400, "invalid_request"),
    ({"vcpus": 1.5}, 400, "invalid_request"),
    ({"vcpus": True}, 400, "invalid_request"),
    ({"vcpus": None}, 400, "invalid_request"),
    ({"memory_mb": -512}, 400, "invalid_size"),
    ({"memory_mb": 0}, 400, "invalid_size"),
    ({"memory_mb": 1 << 40}, 400, "invalid_size"),
    ({"disk_size_mb": -1}, 400, "invalid_request"),
    ({"disk_size_mb": 20480}, 400, "disk_size_unsupported"),
    ({"timeout_sec": -1}, 400, "invalid_request"),
    ({"timeout_sec": 1 << 40}, 400, "invalid_request"),
    ({"ends_in_sec": 0}, 400, "invalid_request"),
    ({"ends_at": "2001-01-01T00:00:00Z"}, 400, "invalid_request"),
    ({"ends_at": "2199-01-01T00:00:00"}, 400, "invalid_request"),
    ({"ends_at": "soon"}, 400, "invalid_request"),
    ({"ends_at": "2199-01-01T00:00:00Z", "ends_in_sec": 5}, 400, "invalid_request"),
    ({"idle_action": "explode"}, 400, "invalid_request"),
    ({"template": "no-such-template"}, 404, "template_not_found"),
    ({"template": "../../etc"}, 400, "invalid_request"),
    ({"template": ""}, 400, "invalid_request"),
    ({"template": "a\0b"}, 400, "invalid_request"),
    ({"template": 7}, 400, "invalid_request"),
    ({"metadata": {str(n): "" for n in range(65)}}, 400, "invalid_request"),
    ({"metadata": {"": "x"}}, 400, "invalid_request"),
    ({"metadata": {"a\0": "x"}}, 400, "invalid_request"),
    ({"metadata": {"a": "x\0"}}, 400, "invalid_request"),
    ({"metadata": {"a": 1}}, 400, "invalid_request"),
    ({"metadata": {"a": LONG}}, 400, "invalid_request"),
    ({"metadata": ["a"]}, 400, "invalid_request"),
    ({"envs": {"A=B": "x"}}, 400, "invalid_request"),
    ({"envs": {"A": "x\0y"}}, 400, "invalid_request"),
    ({"envs": {"A": LONG}}, 400, "invalid_request"),
    ({"network": {"egress": "maybe"}}, 400, "invalid_request"),
    ({"network": {"egress": "open", "allow_out": ["1.2.3.4"]}}, 400, "invalid_request"),
    ({"network": {"allow_out": ["not an address"]}}, 400, "invalid_request"),
    ({"network": {"deny_out": ["::1/128"]}}, 400, "invalid_request"),
    ({"tiemout_sec": 5}, 400, "invalid_request"),
    ({"network": {"egres": "open"}}, 400, "invalid_request"),
]


def refused(answer: httpx.Response) -> tuple[int, str]:
    error = answer.json()["error"]
    assert len(error["message"]) > 10 and error["message"].endswith(".")
    return answer.status_code, error["code"]


@pytest.mark.parametrize(("body", "status", "code"), BAD_CREATES, ids=lambda v: str(v)[:40])
def test_creates(plane: Plane, body: dict[str, Any], status: int, code: str) -> None:
    assert refused(plane.client.post("/v1/sandboxes", json=body)) == (status, code)
    assert plane.agent.machines == {} and "CreateSandbox" not in plane.agent.calls
    assert plane.client.get("/v1/sandboxes?state=pending,running,error").json() == {"items": []}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"template": "\\ud800"}', b"1" * 5000],
    ids=lambda c: repr(c[:20]),
)
def test_bodies_that_are_no_json_object(plane: Plane, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    assert refused(plane.client.post("/v1/sandboxes", content=content, headers=headers)) == (400, "invalid_request")


def test_a_body_of_the_wrong_type(plane: Plane) -> None:
    answer = plane.client.post("/v1/sandboxes", content=b"a=b", headers={"Content-Type": "text/plain"})
    assert refused(answer) == (400, "invalid_request")


def test_a_body_that_is_too_big(plane: Plane, sandbox: str) -> None:
    path = f"/v1/sandboxes/{sandbox}/exec"
    stdin = "x" * (3 << 20)
    assert refused(plane.client.post(path, json={"cmd": "cat", "stdin": stdin})) == (413, "too_large")
    assert refused(plane.client.post(path, json={"cmd": "cat", "stdin": stdin * 2})) == (413, "too_large")

    def endless():  # without a Content-Length
        for _ in range(100):
            yield b" " * 65536

    answer = plane.client.post("/v1/sandboxes", content=endless(), headers={"Content-Type": "application/json"})
    assert refused(answer) == (413, "too_large")


@pytest.mark.parametrize(
    "name",
    [
        *("x", "sb-", "sb-1", "SB-00000000-0000-4000-8000-000000000000", "sb-00000000000040008000000000000000"),
        *("sb-{00000000-0000-4000-8000-000000000000}", "key-00000000-0000-4000-8000-000000000000", "sb-" + "z" * 25),
        *("sb-00000000-0000-4000-8000-00000000000%00", "%2e%2e", "sb-" + "0" * 5000, "sb-%ff"),
    ],
    ids=lambda n: n[:30],
)
@pytest.mark.parametrize(("method", "rest"), [("GET", ""), ("DELETE", ""), ("POST", "/exec"), ("GET", "/files?path=x")])
def test_malformed_ids(plane: Plane, name: str, method: str, rest: str) -> None:
    body = {"json": {"cmd": "true"}} if method == "POST" else {}
    answer = plane.client.request(method, f"/v1/sandboxes/{name}{rest}", **body)
    assert refused(answer) == (400, "invalid_id")


@pytest.mark.parametrize(
    ("method", "rest", "body"),
    [
        ("GET", "", None),
        ("DELETE", "", None),
        ("PATCH", "", {"timeout_sec": 3}),
        ("POST", "/exec", {"cmd": "true"}),
        ("POST", "/exec", {"cmd": "true", "background": True}),
        ("POST", "/ping", None),
        ("GET", "/processes", None),
        ("DELETE", "/processes/1", None),
        ("GET", "/files?path=x", None),
        ("PUT", "/files?path=x", None),
        ("POST", "/files/read", {"path": "x"}),
        ("POST", "/files/stream/read", {"path": "x"}),
    ],
)
def test_sandboxes_that_do_not_exist(plane: Plane, method: str, rest: str, body: dict[str, Any] | None) -> None:
    answer = plane.client.request(method, f"/v1/sandboxes/{ZERO}{rest}", json=body)
    assert refused(answer) == (404, "not_found")
    assert not set(plane.agent.calls) - {"ListSandboxes", "GetHost"}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"cmd": ""},
        {"cmd": 5},
        {"cmd": "a\0b"},
        {"cmd": "true", "args": "x"},
        {"cmd": "true", "args": ["a\0b"]},
        {"cmd": "true", "args": ["x" * 200_000]},
        {"cmd": "true", "envs": {"": "x"}},
        {"cmd": "true", "envs": {"A": 1}},
        {"cmd": "true", "cwd": "a\0b"},
        {"cmd": "true", "user": "x" * 65},
        {"cmd": "true", "timeout_sec": -1},
        {"cmd": "true", "timeout_sec": 10**20},
        {"cmd": "true", "stdin": "%%", "stdin_encoding": "base64"},
        {"cmd": "true", "stdin_encoding": "rot13"},
        {"cmd": "true", "background": "yes"},
        {"cmd": "true", "background": True, "stdin": "x"},
        {"cmd": "true", "tag": "mine"},
        {"cmd": "true", "background": True, "tag": "12"},
        {"cmd": "true", "background": True, "tag": "a/b"},
        {"command": "true"},
    ],
    ids=lambda b: str(b)[:50],
)
def test_commands(plane: Plane, sandbox: str, body: dict[str, Any]) -> None:
    assert refused(plane.client.post(f"/v1/sandboxes/{sandbox}/exec", json=body)) == (400, "invalid_request")
    assert "Exec" not in plane.agent.calls and "StartBackground" not in plane.agent.calls


def test_a_command_that_does_not_exist_is_no_error_of_ours(plane: Plane, sandbox: str) -> None:
    answer = plane.client.post(f"/v1/sandboxes/{sandbox}/exec", json={"cmd": "no-such-program"})
    assert answer.status_code == 200 and answer.json()["exit_code"] == 127
    assert "no-such-program" in answer.json()["stderr"]


@pytest.mark.parametrize("path", ["", "a\0b", "..", "../x", "a/../../b", "/tmp/..", "x" * 5000], ids=lambda p: p[:10])
def test_paths(plane: Plane, sandbox: str, path: str) -> None:
    base = f"/v1/sandboxes/{sandbox}/files"
    form = {"data": {"path": path}, "files": {"file": ("f", b"x")}}
    answers = [
        plane.client.get(base, params={"path": path}),
        plane.client.put(base, params={"path": path}, content=b"x"),
        plane.client.post(f"{base}/read", json={"path": path}),
        plane.client.post(f"{base}/stream/read", json={"path": path}),
        plane.client.post(f"{base}/write", **form),
    ]
    assert [refused(answer) for answer in answers] == [(400, "invalid_path")] * len(answers)
    status, code = refused(plane.client.post(f"{base}/stream/write", **form))
    assert status == 400 and code in ("invalid_path", "invalid_request")
    assert not set(plane.agent.calls) & {"WriteFileStream", "ReadFileStream"}


def test_files_that_are_not_there_or_no_files(plane: Plane, sandbox: str) -> None:
    base = f"/v1/sandboxes/{sandbox}/files"
    (plane.agent.root / "folder").mkdir(exist_ok=True)
    for path in ("nothing", "folder"):
        assert plane.client.get(base, params={"path": path}).headers["content-type"] == "application/json"
    for read in ("read", "stream/read"):
        assert refused(plane.client.post(f"{base}/{read}", json={"path": "nothing"})) == (404, "file_not_found")
        assert refused(plane.client.post(f"{base}/{read}", json={"path": "folder"})) == (400, "not_a_file")
    big = b"x" * (4 << 20)  # the refusal comes while the body is still on its way
    assert refused(plane.client.put(base, params={"path": "folder"}, content=big)) == (400, "not_a_file")


@pytest.mark.parametrize(
    "query",
    [
        *("limit=0", "limit=101", "limit=x", "cursor=%00", "cursor=AAAA", "cursor=" + "A" * 300),
        *("state=resting", "state=", "metadata.a=%00", "metadata.%00=a", "cursor=MjAwMS0wMS0wMXww"),
    ],
)
def test_lists(plane: Plane, query: str) -> None:
    status, code = refused(plane.client.get(f"/v1/sandboxes?{query}"))
    assert status == 400 and code in ("invalid_request", "invalid_cursor")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", "/", 404, "not_found"),
        ("PUT", "/v1/sandboxes", 405, "method_not_allowed"),
        ("DELETE", "/v1/api-keys/nonsense", 400, "invalid_id"),
        ("DELETE", "/v1/api-keys/key-00000000-0000-4000-8000-000000000000", 404, "not_found"),
    ],
)
def test_paths_of_the_api(plane: Plane, method: str, path: str, status: int, code: str) -> None:
    assert refused(plane.client.request(method, path)) == (status, code)


def test_none_of_this_was_an_accident(plane: Plane) -> None:
    assert "unexpected failure" not in plane.log() and "Traceback" not in plane.log()
