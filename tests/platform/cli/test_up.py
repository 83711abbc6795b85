"""`wrenn up`: from the start to the ready file, through the death of its children, to an end that leaves nothing."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.platform.cli.conftest import WRENN, refusal, started, until, up, wrenn
from tests.running import Platform

pytestmark = pytest.mark.platform


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Iterator[Platform]:
    with up(tmp_path_factory.mktemp("up"), images) as platform:
        yield platform


def asked(images: Path, data_dir: Path, *options: object) -> tuple[object, ...]:
    """A command line of `wrenn up`."""
    tag = f"v{os.getpid() % 10000}"
    where = ("--data-dir", data_dir, "--images-dir", images)
    return ("up", "--driver", "fake", "--tag", tag, *where, "--listen", "127.0.0.1:0", *options)


def answers(platform: Platform) -> bool:
    try:
        return platform.client.get("/v1/sandboxes", timeout=5).status_code == 200
    except OSError:
        return False
    except Exception as error:
        if type(error).__module__.startswith("httpx"):
            return False
        raise


def unlocked(path: Path) -> bool:
    with path.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_the_ready_file_is_all_a_client_needs(running: Platform) -> None:
    assert set(running.ready) == {"api_url", "api_key", "dashboard_url", "driver", "env"}
    assert running.ready["driver"] == "fake/none"
    assert stat.S_IMODE((running.data_dir / "ready.json").stat().st_mode) == 0o600
    env = running.ready["env"]
    assert env == {"WRENN_BASE_URL": running.url, "WRENN_API_KEY": running.ready["api_key"]}
    assert running.client.get(str(running.ready["dashboard_url"])).status_code == 200
    listed = wrenn("sandbox", "list", "--json", env=env)
    assert (listed.returncode, listed.stderr, json.loads(listed.stdout)) == (0, b"", [])


def test_what_it_writes_is_its_owners_alone(running: Platform) -> None:
    files = [path for path in running.data_dir.rglob("*") if path.is_file()]
    secret = [p for p in files if p.suffix in {".db", ".key", ".token", ".json", ".log"} and p.name != "up.log"]
    assert len(secret) > 4
    open_to_others = [p for p in secret if p.stat().st_mode & 0o077 and not _shut_above(p, running.data_dir)]
    assert open_to_others == []


def _shut_above(path: Path, root: Path) -> bool:
    return any(not folder.stat().st_mode & 0o001 for folder in path.parents if folder.is_relative_to(root))


def test_a_data_directory_has_one_user(running: Platform, images: Path) -> None:
    assert "[data_dir_in_use]" in refusal(wrenn(*asked(images, running.data_dir)))
    assert answers(running)


@pytest.mark.parametrize("module", ["hostagent", "controlplane"])
def test_a_child_that_is_killed_is_started_again(running: Platform, module: str) -> None:
    sandbox = running.create()["id"]
    pid = running.pid_of(module)
    os.kill(pid, signal.SIGKILL)

    def replaced() -> bool:
        try:
            return running.pid_of(module) != pid
        except LookupError:
            return False

    until(replaced)
    until(lambda: answers(running))
    exec_path = f"/v1/sandboxes/{sandbox}/exec"
    until(lambda: running.client.post(exec_path, json={"cmd": "true"}).status_code == 200)
    assert running.sh(sandbox, "echo still here") == "still here\n", "its machine never noticed"
    until(lambda: running.client.post("/v1/sandboxes", json={}).status_code == 201)
    for item in running.client.get("/v1/sandboxes").json()["items"]:
        running.kill(item["id"])
    assert b"starting it again" in (running.data_dir / "up.log").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_pauses_what_runs_and_leaves_nothing(number: signal.Signals, images: Path, tmp_path: Path) -> None:
    with up(tmp_path, images) as platform:
        sandboxes = [platform.create()["id"] for _ in range(3)]
        platform.run(sandboxes[0], "sh", "-c", "sleep 600 &")
        platform.process.send_signal(number)
        assert platform.process.wait(60) == 0
    assert not (tmp_path / "ready.json").exists()
    assert list((tmp_path / "run").iterdir()) == []
    assert "3 of 3 sandboxes paused" in (tmp_path / "up.log").read_text()
    with up(tmp_path, images, "--kill") as platform:
        for sandbox in sandboxes:
            path = f"/v1/sandboxes/{sandbox}"
            until(lambda path=path: platform.client.get(path).json()["status"] == "paused")
            assert platform.client.post(f"{path}/resume").status_code == 200
            assert platform.sh(sandbox, "echo back") == "back\n"
    assert "3 of 3 sandboxes destroyed" in (tmp_path / "up.log").read_text()
    assert list((tmp_path / "builds").iterdir()) == list((tmp_path / "holds").iterdir()) == []


def test_a_killed_one_leaves_its_sandboxes_to_the_next(images: Path, tmp_path: Path, clean: None) -> None:
    ready, data_dir = tmp_path / "first.json", tmp_path / "d"
    with started(*asked(images, data_dir, "--ready-file", ready), log=tmp_path / "up.log") as process:
        until(ready.exists)
        sandbox = wrenn("sandbox", "create", env=json.loads(ready.read_text())["env"]).stdout.decode().strip()
        process.kill()
        process.wait(60)
    until(lambda: unlocked(data_dir / "agent.lock"))
    assert [path.name for path in (data_dir / "run").glob("sb-*")] == [sandbox]
    with up(data_dir, images) as again:
        assert again.sh(sandbox, "echo still here") == "still here\n"
        again.kill(sandbox)


def test_killed_it_takes_its_children_along(images: Path, tmp_path: Path, clean: None) -> None:
    ready, log = tmp_path / "ready", tmp_path / "up.log"
    command = asked(images, tmp_path / "d", "--ready-file", ready)
    with started(*command, log=log) as process:
        until(ready.exists)
        process.kill()
        process.wait(60)
    ready.unlink()
    until(lambda: unlocked(tmp_path / "d" / "agent.lock"))
    with started(*command, log=log) as process:
        until(ready.exists)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_a_signal_before_it_is_ready_ends_it_too(images: Path, tmp_path: Path, clean: None) -> None:
    log = tmp_path / "up.log"
    with started(*asked(images, tmp_path / "d"), log=log) as process:
        until((tmp_path / "d" / "logs" / "hostagent.log").exists)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, log.read_text()
    assert list((tmp_path / "d" / "run").iterdir()) == []


def test_hello_runs_a_program_and_prints_what_it_took(images: Path, tmp_path: Path) -> None:
    with up(tmp_path, images, "--hello") as platform:
        assert platform.client.get("/v1/sandboxes").json()["items"] == []
        said = (tmp_path / "up.log").read_text()
    assert "hello from" in said
    assert [line.split()[0] for line in said.splitlines() if " ms" in line] == ["create", "run", "destroy"]


def test_it_comes_back_on_its_data(images: Path, tmp_path: Path) -> None:
    with up(tmp_path, images) as platform:
        key = platform.ready["api_key"]
    with up(tmp_path, images) as platform:
        assert platform.ready["api_key"] == key
        assert platform.sh(platform.create()["id"], "echo ok") == "ok\n"


def test_a_port_in_use_is_one_clear_line(images: Path, tmp_path: Path, clean: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = wrenn(*asked(images, tmp_path, "--listen", address))
    said = refusal(done)
    assert address in said and "[address_in_use]" in said
    assert list((tmp_path / "run").iterdir()) == []


def test_a_child_that_cannot_start_shows_the_end_of_its_log(images: Path, tmp_path: Path, clean: None) -> None:
    (tmp_path / "wrenn.db").write_text("This is no database.\n" * 1000)
    done = wrenn(*asked(images, tmp_path))
    said = done.stderr.decode()
    assert done.returncode == 1
    assert "did not start" in said and "not a database" in said
    assert "cli/up.py" not in said, "the supervisor's own traceback helps nobody"


def test_without_artefacts_it_says_how_to_make_them(tmp_path: Path, clean: None) -> None:
    said = refusal(wrenn(*asked(tmp_path / "none", tmp_path / "data")))
    assert "wrenn image build" in said and "[artefacts_missing]" in said
    assert list(tmp_path.iterdir()) == []


def test_without_a_shim_or_a_compiler_it_says_what_to_do(images: Path, tmp_path: Path, clean: None) -> None:
    done = wrenn(*asked(images, tmp_path), env={"WRENN_EXEC_SHIM": str(tmp_path / "none")})
    assert "[shim_missing]" in refusal(done)


NOBODY = 65534
DROP = ("setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups")


@pytest.fixture
def folder(images: Path) -> Iterator[Path]:
    """A folder, with artefacts, of a user without any rights."""
    with tempfile.TemporaryDirectory(prefix="wrenn-nobody-") as name:
        shutil.copytree(images, Path(name, "images"))
        Path(name, "images").chmod(0o755)
        os.chown(name, NOBODY, NOBODY)
        yield Path(name)


def as_nobody(*arguments: object) -> subprocess.CompletedProcess[bytes]:
    """One command of that user."""
    return subprocess.run([*DROP, *WRENN, *map(str, arguments)], capture_output=True, timeout=60, check=False)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root to give it up")
class TestWithoutRoot:
    """As a user with no rights at all."""

    def test_a_real_machine_is_refused_with_what_to_do(self, folder: Path) -> None:
        said = refusal(as_nobody("up", "--data-dir", folder))
        assert "sudo" in said and "--driver fake" in said and "[forbidden]" in said

    def test_a_folder_of_someone_else_is_one_line(self, folder: Path) -> None:
        done = as_nobody(*asked(folder / "images", Path("/root/wrenn")))
        assert done.returncode == 1 and done.stderr == b"wrenn: /root/wrenn: Permission denied\n", done
