"""Files through the API: whole, exact, with constant memory, and never half."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from tests.platform.controlplane.conftest import Plane, until
from wrenn_sandbox.core.errors import NoSpace

pytestmark = pytest.mark.platform

MIB = 1 << 20
BLOCK = os.urandom(MIB)


@pytest.fixture
def base(sandbox: str) -> str:
    return f"/v1/sandboxes/{sandbox}/files"


def form(*parts: tuple[str, bytes, str]) -> tuple[bytes, dict[str, str]]:
    """A multipart body with parts (name, value, extra disposition) in exactly this order."""
    body = b""
    for name, value, extra in parts:
        body += f'--b\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode() + value + b"\r\n"
    return body + b"--b--\r\n", {"Content-Type": "multipart/form-data; boundary=b"}


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 3 * MIB + 1])
def test_what_is_written_is_read(plane: Plane, base: str, size: int) -> None:
    content = (BLOCK * 4)[:size]
    path = "/dir/sub dir/ü %.bin"
    assert plane.client.put(base, params={"path": path}, content=content).status_code == 204
    assert (plane.agent.root / path.lstrip("/")).read_bytes() == content
    for answer in (
        plane.client.get(base, params={"path": path}),
        plane.client.post(f"{base}/read", json={"path": path}),
        plane.client.post(f"{base}/stream/read", json={"path": path}),
    ):
        assert answer.status_code == 200 and answer.content == content
        assert answer.headers["content-type"] == "application/octet-stream"


def test_forms_write_files(plane: Plane, base: str) -> None:
    parts = ("path", b"a.txt", ""), ("file", BLOCK, '; filename="whatever"')
    for order in (parts, parts[::-1]):
        body, headers = form(*order)
        assert plane.client.post(f"{base}/write", content=body, headers=headers).status_code == 204
        assert (plane.agent.root / "a.txt").read_bytes() == BLOCK
        (plane.agent.root / "a.txt").unlink()
    body, headers = form(*parts)
    assert plane.client.post(f"{base}/stream/write", content=body, headers=headers).status_code == 204
    assert (plane.agent.root / "a.txt").read_bytes() == BLOCK
    body, headers = form(parts[1])
    answer = plane.client.post(f"{base}/stream/write?path=b.txt", content=body, headers=headers)
    assert answer.status_code == 204 and (plane.agent.root / "b.txt").read_bytes() == BLOCK


def test_forms_that_cannot_be_streamed_are_refused_clearly(plane: Plane, base: str) -> None:
    name = '; filename="f"'
    cases = [
        form(("file", b"x", name), ("path", b"never.txt", "")),
        form(("path", b"never.txt", "")),
        form(("path", b"never.txt", ""), ("file", b"x", name), ("file", b"y", name)),
        form(*[("path", b"never.txt", "")] * 40, ("file", b"x", name)),
        form(("path", b"x" * 100_000, ""), ("file", b"x", name)),
        (b"no form at all", form()[1]),
        (b"no form at all", {"Content-Type": "text/plain"}),
        (b"no boundary", {"Content-Type": "multipart/form-data"}),
        (form(("path", b"never.txt", ""), ("file", BLOCK, name))[0][:-20], form()[1]),
    ]
    for body, headers in cases:
        answer = plane.client.post(f"{base}/stream/write", content=body, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request"), (
            body[:60],
            answer.text,
        )
    assert "before" in plane.client.post(f"{base}/stream/write", content=cases[0][0], headers=cases[0][1]).text
    assert not (plane.agent.root / "never.txt").exists()
    for body, headers in (cases[1], cases[6], cases[7]):
        answer = plane.client.post(f"{base}/write", content=body, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request"), answer.text


def test_a_form_above_100_mib_is_refused(plane: Plane, base: str) -> None:
    head = f"POST {base}/write HTTP/1.1\r\nHost: x\r\nX-API-Key: {plane.key}\r\nContent-Length: {200 * MIB}\r\n"
    with socket.create_connection(address(plane)) as connection:
        connection.sendall(f"{head}Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n".encode())
        answer = b""
        while b"too_large" not in answer:
            received = connection.recv(65536)
            assert received, answer
            answer += received
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_form_above_100_mib_that_did_not_say_so_is_refused(plane: Plane, base: str) -> None:
    def content() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        for _ in range(101):
            yield BLOCK

    answer = plane.client.post(f"{base}/write", content=content(), headers=form()[1])
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


def address(plane: Plane) -> tuple[str, int]:
    where = urlsplit(plane.url)
    return str(where.hostname), int(where.port or 0)


def test_memory_does_not_grow_with_the_file(plane: Plane, base: str) -> None:
    size_mib = 192
    plane.client.put(base, params={"path": "warm"}, content=BLOCK * 8)
    before = plane.rss_kib()
    most = 0

    def content() -> Iterator[bytes]:
        nonlocal most
        for _ in range(size_mib):
            most = max(most, plane.rss_kib())
            yield BLOCK

    assert plane.client.put(base, params={"path": "big"}, content=content()).status_code == 204
    digest = hashlib.sha256()
    with plane.client.stream("GET", base, params={"path": "big"}) as answer:
        for chunk in answer.iter_bytes(MIB):
            digest.update(chunk)
            most = max(most, plane.rss_kib())
    assert digest.digest() == hashlib.sha256(BLOCK * size_mib).digest()
    assert most - before < 64 * 1024, f"grew by {most - before} KiB"
    assert plane.agent.largest_chunk <= 64 * 1024
    (plane.agent.root / "big").unlink()


def test_an_upload_that_breaks_off_writes_nothing(plane: Plane, base: str) -> None:
    broken = plane.agent.uploads_broken
    head = f"PUT {base}?path=half HTTP/1.1\r\nHost: x\r\nX-API-Key: {plane.key}\r\nContent-Length: {8 * MIB}\r\n\r\n"
    with socket.create_connection(address(plane)) as connection:
        connection.sendall(head.encode() + BLOCK)
        until((plane.agent.root / "half.part").exists)
    until(lambda: plane.agent.uploads_broken == broken + 1)
    assert not (plane.agent.root / "half").exists() and not (plane.agent.root / "half.part").exists()


def test_a_download_that_nobody_reads_any_more_ends(plane: Plane, base: str) -> None:
    (plane.agent.root / "large").write_bytes(BLOCK * 64)
    ended = plane.agent.downloads_ended
    with plane.client.stream("GET", base, params={"path": "large"}) as answer:
        next(answer.iter_bytes(65536))
    until(lambda: plane.agent.downloads_ended == ended + 1)


def test_a_full_disk_in_the_sandbox_is_said_to(plane: Plane, base: str) -> None:
    plane.agent.fail["WriteFileStream"] = NoSpace("The disk of the sandbox is full; remove something in it.")
    answer = plane.client.put(base, params={"path": "x"}, content=BLOCK)
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "no_space")


def test_a_read_that_breaks_in_the_middle_does_not_look_whole(plane: Plane, base: str) -> None:
    (plane.agent.root / "large").write_bytes(BLOCK * 16)
    with plane.client.stream("GET", base, params={"path": "large"}) as answer:
        assert answer.status_code == 200
        chunks = answer.iter_bytes(65536)
        next(chunks)
        plane.agent.break_downloads = True
        with pytest.raises(httpx.RemoteProtocolError):
            list(chunks)


def test_transfers_leave_no_descriptor(plane: Plane, base: str) -> None:
    for name in ("a", "b"):
        plane.client.put(base, params={"path": name}, content=BLOCK)
        plane.client.get(base, params={"path": name})
    before = plane.descriptors()
    for _ in range(10):
        plane.client.put(base, params={"path": "a"}, content=BLOCK)
        plane.client.get(base, params={"path": "a"})
        plane.client.get(base, params={"path": "nothing"})
    assert plane.descriptors() <= before + 2
