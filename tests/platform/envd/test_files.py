"""GET and POST /files with real files, users and sizes."""

from __future__ import annotations

import ctypes
import gzip
import hashlib
import os
import socket
import stat
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.platform.envd.daemon import TOKEN, Daemon, running
from wrenn_sandbox.envd.auth import sign

pytestmark = [
    pytest.mark.platform,
    pytest.mark.skipif(os.geteuid() != 0, reason="envd acts for users, which needs root"),
]

OCTETS = {"Content-Type": "application/octet-stream"}
NOBODY = 65534
GIB = 1 << 30


@pytest.fixture(scope="module")
def daemon(exec_shim: Path) -> Iterator[Daemon]:
    with running(exec_shim) as started:
        started.client.headers.update(started.authorized)
        assert started.init().status_code == 204
        yield started


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory every user may enter and write, unlike pytest's."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o777)
        yield path


def get(daemon: Daemon, path: object, user: str = "root", **headers: str) -> httpx.Response:
    query = {"path": str(path), "username": user}
    return daemon.client.get("/files", params=query, headers={k.replace("_", "-"): v for k, v in headers.items()})


def put(daemon: Daemon, path: object, content: bytes, user: str = "root", **headers: str) -> httpx.Response:
    fields = {k.replace("_", "-"): v for k, v in headers.items()}
    query = {"path": str(path), "username": user}
    return daemon.client.post("/files", params=query, content=content, headers={**OCTETS, **fields})


def slug(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error_code"]


def test_what_can_be_read(daemon: Daemon, folder: Path) -> None:
    (folder / "f").write_bytes(b"0123456789")
    (folder / "empty").touch()
    (folder / "link").symlink_to("f")
    for name, content in (("f", b"0123456789"), ("link", b"0123456789"), ("empty", b"")):
        answer = get(daemon, folder / name)
        assert (answer.status_code, answer.content) == (200, content)
        assert answer.headers["content-length"] == str(len(content))
    assert get(daemon, "/proc/version").content == Path("/proc/version").read_bytes()
    assert get(daemon, "/proc/cpuinfo").content.startswith(b"processor")
    assert get(daemon, "/sys/kernel/mm/transparent_hugepage/enabled").status_code in {200, 404}


def test_what_cannot(daemon: Daemon, folder: Path) -> None:
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(folder / "socket"))
    (folder / "to-zero").symlink_to("/dev/zero")
    for path in ("/dev/zero", "/dev/urandom", "/dev/null", folder / "fifo", folder / "socket", folder / "to-zero"):
        for answer in (get(daemon, path), put(daemon, path, b"x")):
            assert slug(answer) == (400, "not_regular")
            assert f"path '{path}' is not a regular file" in answer.json()["message"]
    for answer in (get(daemon, folder), put(daemon, folder, b"x")):
        assert slug(answer) == (400, "is_directory")
    assert slug(get(daemon, folder / "missing")) == (404, "not_found")
    assert slug(get(daemon, "/a\0b")) == (400, "invalid_path")
    assert slug(put(daemon, "/a\0b", b"x")) == (400, "invalid_path")
    assert slug(get(daemon, "/etc", user="no-such-user")) == (401, "invalid_username")
    assert get(daemon, "/proc/kmsg").status_code in {200, 403}  # and no waiting for the next message


def test_negotiation(daemon: Daemon, folder: Path) -> None:
    content = b"line\n" * 200_000
    (folder / "f").write_bytes(content)
    with daemon.client.stream(
        "GET", f"/files?username=root&path={folder}/f", headers={"Accept-Encoding": "gzip"}
    ) as answer:
        packed = b"".join(answer.iter_raw())
    assert (answer.headers["content-encoding"], answer.headers["vary"]) == ("gzip", "Accept-Encoding")
    assert gzip.decompress(packed) == content
    assert len(packed) < len(content) // 10
    part = get(daemon, folder / "f", Range="bytes=300000-699999")
    assert (part.status_code, part.content) == (206, content[300000:700000])
    assert part.headers["content-range"] == f"bytes 300000-699999/{len(content)}"
    assert get(daemon, folder / "f", Range=f"bytes={len(content)}-").status_code == 416
    whole = get(daemon, folder / "f")
    assert get(daemon, folder / "f", If_None_Match=whole.headers["etag"]).status_code == 304
    assert get(daemon, folder / "f", If_Modified_Since=whole.headers["last-modified"]).status_code == 304
    assert get(daemon, folder / "f", Accept_Encoding="identity;q=0, br").status_code == 406


def test_files_are_read_with_the_rights_of_the_user(daemon: Daemon, folder: Path) -> None:
    secret, closed = folder / "secret", folder / "closed"
    secret.write_text("secret")
    secret.chmod(0o600)
    closed.mkdir(mode=0o700)
    (closed / "f").write_text("x")
    (folder / "link").symlink_to(secret)
    for path in (secret, closed / "f", folder / "link", "/etc/shadow"):
        assert slug(get(daemon, path, "nobody")) == (403, "permission_denied")
        assert get(daemon, path, "root").status_code == 200
    os.chown(secret, NOBODY, NOBODY)
    assert get(daemon, secret, "nobody").content == b"secret"
    shared = folder / "shared"
    shared.write_text("group")
    os.chown(shared, 0, NOBODY)
    shared.chmod(0o640)
    assert get(daemon, shared, "nobody").content == b"group"


def test_many_users_at_once_do_not_mix(daemon: Daemon, folder: Path) -> None:
    secret = folder / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)
    wrong: list[int] = []

    def ask(user: str, expected: int) -> None:
        with httpx.Client(base_url=daemon.client.base_url, headers=daemon.authorized) as client:
            for _ in range(50):
                status = client.get("/files", params={"path": str(secret), "username": user}).status_code
                if status != expected:
                    wrong.append(status)

    threads = [threading.Thread(target=ask, args=a) for a in (("root", 200), ("nobody", 403)) * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_written_files_belong_to_the_user(daemon: Daemon, folder: Path) -> None:
    path = folder / "a" / "b" / "f"
    assert put(daemon, path, b"hello", "nobody").json() == [{"path": str(path), "name": "f", "type": "file"}]
    for made, mode in ((path, 0o644), (path.parent, 0o755), (path.parent.parent, 0o755)):
        status = made.stat()
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (NOBODY, NOBODY, mode)
    path.chmod(0o751)
    inode = path.stat().st_ino
    assert put(daemon, path, b"x", "nobody").status_code == 200
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode), path.stat().st_ino) == (b"x", 0o751, inode)


def test_files_are_written_with_the_rights_of_the_user(daemon: Daemon, folder: Path) -> None:
    roots, closed = folder / "roots", folder / "closed"
    roots.write_text("kept")
    closed.mkdir(mode=0o755)
    (folder / "link").symlink_to(roots)
    (folder / "to-closed").symlink_to(closed)
    for path in (roots, folder / "link", folder / "to-closed" / "new"):
        assert put(daemon, path, b"x", "nobody").status_code in {400, 403}
    assert roots.read_text() == "kept"
    assert list(closed.iterdir()) == []


def test_a_new_path_where_only_root_may_write_is_made_for_the_user(daemon: Daemon, folder: Path) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o755)
    assert put(daemon, closed / "data" / "f", b"x", "nobody").status_code == 200
    assert ((closed / "data").stat().st_uid, (closed / "data" / "f").stat().st_uid) == (NOBODY, NOBODY)
    assert closed.stat().st_uid == 0
    (closed / "roots").write_text("kept")
    assert slug(put(daemon, closed / "roots", b"x", "nobody")) == (403, "permission_denied")


def test_forms(daemon: Daemon, folder: Path) -> None:
    names = [f"{folder}/one", f"{folder}/deep/ä b.txt"]
    files = [("file", (name, name.encode())) for name in names]
    answer = daemon.client.post("/files", params={"username": "root"}, files=files)
    assert [entry["path"] for entry in answer.json()] == names
    assert [Path(name).read_bytes() for name in names] == [name.encode() for name in names]
    answer = daemon.client.post("/files", params={"path": f"{folder}/two"}, files={"file": ("x", b"2")})
    assert answer.status_code == 200
    assert (folder / "two").read_bytes() == b"2"
    packed = gzip.compress(b"unpacked" * 1000)
    assert put(daemon, folder / "three", packed, Content_Encoding="gzip").status_code == 200
    assert (folder / "three").read_bytes() == b"unpacked" * 1000


def test_metadata(daemon: Daemon, folder: Path) -> None:
    path = folder / "f"
    answer = put(daemon, path, b"x", X_Metadata_Author="me", X_Metadata_Kind="a b")
    if answer.status_code == 400 and answer.json()["error_code"] == "metadata_unsupported":
        pytest.skip("this machine's /tmp keeps no extended attributes")
    assert answer.json()[0]["metadata"] == {"author": "me", "kind": "a b"}
    assert {n: os.getxattr(path, n) for n in os.listxattr(path)} == {
        "user.e2b.author": b"me",
        "user.e2b.kind": b"a b",
    }
    put(daemon, path, b"x", X_Metadata_Kind="new")
    assert {n: os.getxattr(path, n) for n in os.listxattr(path)} == {"user.e2b.kind": b"new"}
    assert "metadata" not in put(daemon, path, b"x").json()[0]
    assert os.listxattr(path) == []


def test_a_watcher_sees_exactly_create_attributes_write(daemon: Daemon, folder: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    modify, attrib, create, moved, delete = 0x2, 0x4, 0x100, 0xC0, 0x200  # inotify(7)
    watch = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        libc.inotify_add_watch(watch, str(folder).encode(), modify | attrib | create | moved | delete)
        assert put(daemon, folder / "new", b"content").status_code == 200
        data, seen = os.read(watch, 4096), []
        while data:
            _, mask, _, length = struct.unpack("iIII", data[:16])
            seen.append((mask, data[16 : 16 + length].rstrip(b"\0")))
            data = data[16 + length :]
    finally:
        os.close(watch)
    assert seen == [(create, b"new"), (attrib, b"new"), (modify, b"new")]


def test_a_full_disk(daemon: Daemon, folder: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=777", "tmpfs", folder], check=True)
    try:
        assert slug(put(daemon, folder / "big", bytes(1 << 20))) == (507, "no_space")
        assert list(folder.iterdir()) == []
        assert put(daemon, folder / "small", b"x").status_code == 200
        form = {"file": (f"{folder}/big", bytes(1 << 20))}
        assert slug(daemon.client.post("/files", files=form)) == (507, "no_space")
    finally:
        subprocess.run(["umount", folder], check=True)


def test_signatures(daemon: Daemon, folder: Path) -> None:
    path, later = f"{folder}/f", str(int(time.time()) + 600)
    with httpx.Client(base_url=daemon.client.base_url) as stranger:
        query = {"path": path, "username": "root"}
        up = {**query, "signature": sign(path, "write", "root", TOKEN)}
        down = {**query, "signature": sign(path, "read", "root", TOKEN, later), "signature_expiration": later}
        assert stranger.post("/files", params=query, content=b"x", headers=OCTETS).status_code == 401
        assert stranger.post("/files", params=down, content=b"x", headers=OCTETS).status_code == 401
        assert stranger.post("/files", params=up, content=b"signed", headers=OCTETS).status_code == 200
        assert stranger.get("/files", params=up).status_code == 401
        assert stranger.get("/files", params=down).content == b"signed"
        assert stranger.get("/files", params={**down, "username": "nobody"}).status_code == 401
        past = {**query, "signature": sign(path, "read", "root", TOKEN, "1"), "signature_expiration": "1"}
        answer = stranger.get("/files", params=past)
        assert (answer.status_code, answer.json()["message"]) == (401, "signature is already expired")


def test_a_gibibyte_up_and_down_in_constant_memory(daemon: Daemon, folder: Path) -> None:
    block = os.urandom(1 << 20)
    path, before = folder / "big", daemon.status("VmRSS")

    def blocks() -> Iterator[bytes]:
        for _ in range(GIB >> 20):
            yield block

    answer = daemon.client.post(
        "/files", params={"path": str(path), "username": "root"}, content=blocks(), headers=OCTETS
    )
    assert answer.status_code == 200
    assert path.stat().st_size == GIB
    digest, size = hashlib.md5(), 0
    with daemon.client.stream("GET", "/files", params={"path": str(path), "username": "root"}) as down:
        assert down.headers["content-length"] == str(GIB)
        for chunk in down.iter_raw(1 << 20):
            digest.update(chunk)
            size += len(chunk)
    expected = hashlib.md5()
    for chunk in blocks():
        expected.update(chunk)
    assert (size, digest.digest()) == (GIB, expected.digest())
    assert daemon.status("VmHWM") - before < 64 << 10


def test_a_slow_reader_costs_no_memory(daemon: Daemon, folder: Path) -> None:
    with (folder / "big").open("wb") as file:
        file.truncate(GIB)
    before = daemon.status("VmRSS")
    with daemon.client.stream("GET", f"/files?username=root&path={folder}/big") as answer:
        next(answer.iter_raw(1000))
        for _ in range(20):  # other requests are served, and nothing piles up behind the one that stands still
            assert daemon.client.get("/health").status_code == 204
        assert daemon.status("VmHWM") - before < 64 << 10


def test_no_descriptor_is_left(daemon: Daemon, folder: Path) -> None:
    put(daemon, folder / "f", bytes(1 << 20))
    before = len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))
    for _ in range(20):
        get(daemon, folder / "f")
        put(daemon, folder / "g", b"x")
        get(daemon, folder / "missing")
        put(daemon, folder, b"x")
    assert len(list(Path(f"/proc/{daemon.pid}/fd").iterdir())) <= before


def test_the_rpc_service_keeps_to_the_rights_of_the_user(daemon: Daemon, folder: Path) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    (closed / "f").write_text("")

    def rpc(method: str, user: str, **fields: str) -> httpx.Response:
        auth = httpx.BasicAuth(user, "")
        return daemon.client.post(f"/filesystem.Filesystem/{method}", json=fields, auth=auth)

    for method in ("ListDir", "Remove"):
        assert rpc(method, "nobody", path=str(closed)).json()["code"] == "permission_denied"
    assert rpc("Stat", "nobody", path=str(closed / "f")).json()["code"] == "permission_denied"
    assert rpc("MakeDir", "nobody", path=str(closed / "d")).json()["code"] == "permission_denied"
    made = rpc("MakeDir", "nobody", path=str(folder / "a" / "b")).json()["entry"]
    assert (made["owner"], made["permissions"]) == ("nobody", "drwxr-xr-x")
    assert (folder / "a").stat().st_uid == NOBODY
    assert rpc("ListDir", "root", path=str(closed)).json()["entries"][0]["owner"] == "root"
    assert rpc("Remove", "root", path=str(closed)).status_code == 200
    assert not closed.exists()
