"""Pause, resume, named snapshots, fork and roll back on real QEMU: nothing lost, nothing shared, nothing left."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.running import Platform
from tests.traces import machines_of
from wrenn_sandbox.core.slots import ENVD_PORT, slot
from wrenn_sandbox.hostagent import journal

#: Grows a tree of files, each with its hash, and says what the whole tree should hash to.
GROW = """
import hashlib, os, sys
n = int(sys.argv[1])
for i in range(5):
    body = os.urandom(2000 + 137 * i)
    open(f"/home/user/tree/{n:02}-{i}-{hashlib.sha256(body).hexdigest()}", "wb").write(body)
"""
CHECK = """
import hashlib, pathlib
found = sorted(pathlib.Path("/home/user/tree").iterdir())
assert all(hashlib.sha256(p.read_bytes()).hexdigest() == p.name.split("-")[2] for p in found)
print(len(found))
"""
#: Holds a pattern in memory that it changes and zeroes in places, and answers with its hash.
KEEPER = """
import hashlib, random, socket, sys
pattern, random_ = bytearray(8 << 20), random.Random(7)
server = socket.create_server(("127.0.0.1", 4711))
while True:
    connection, _ = server.accept()
    with connection:
        asked = connection.recv(16)
        if not asked:
            continue  # somebody looked whether it listens
        step = int(asked)
        for _ in range(40):
            at = random_.randrange(0, len(pattern), 4096)
            pattern[at:at + 4096] = random_.randbytes(4096) if random_.random() < 0.7 else bytes(4096)
        connection.sendall(f"{step} {hashlib.sha256(pattern).hexdigest()}".encode())
"""
ASK = """
import socket, sys
with socket.create_connection(("127.0.0.1", 4711)) as keeper:
    keeper.sendall(sys.argv[1].encode())
    print(keeper.recv(99).decode())
"""


def post(wrenn: Platform, path: str, status: int = 200, **body: object) -> dict[str, object]:
    answer = wrenn.client.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def until_listening(wrenn: Platform, sandbox: object, port: int) -> None:
    """Return when a program inside takes connections there."""
    attempt = f"(exec 3<>/dev/tcp/127.0.0.1/{port}) 2>/dev/null"
    wrenn.run(sandbox, "bash", "-c", f"until {attempt}; do sleep 0.1; done", timeout_sec=60)


def pause(wrenn: Platform, sandbox: object) -> dict[str, object]:
    answer = post(wrenn, f"/v1/sandboxes/{sandbox}/pause")
    assert answer["status"] == "paused"
    return answer


def resume(wrenn: Platform, sandbox: object) -> dict[str, object]:
    answer = post(wrenn, f"/v1/sandboxes/{sandbox}/resume")
    assert answer["status"] == "running"
    return answer


def python(wrenn: Platform, sandbox: object, script: str, *arguments: object) -> str:
    answer = wrenn.run(sandbox, "python3", "-c", script, *map(str, arguments))
    assert answer["exit_code"] == 0, answer
    return str(answer["stdout"]).strip()


@pytest.fixture
def snapshots(wrenn: Platform) -> Iterator[list[str]]:
    """Names of snapshots a test made; they are gone afterwards."""
    made: list[str] = []
    yield made
    for name in made:
        assert wrenn.client.delete(f"/v1/snapshots/{name}").status_code in {204, 404}


def test_fifty_generations_lose_nothing(wrenn: Platform, sandbox: str) -> None:
    wrenn.sh(sandbox, "mkdir -p /home/user/tree")
    wrenn.client.put(f"/v1/sandboxes/{sandbox}/files?path=/home/user/keeper.py", content=KEEPER.encode())
    wrenn.sh(sandbox, "nohup python3 /home/user/keeper.py >/dev/null 2>&1 & echo $! >/home/user/pid")
    until_listening(wrenn, sandbox, 4711)
    twin = _Twin()
    for generation in range(50):
        python(wrenn, sandbox, GROW, generation)
        pause(wrenn, sandbox)
        resume(wrenn, sandbox)
        assert python(wrenn, sandbox, ASK, generation) == f"{generation} {twin.step()}"
        if generation % 7 == 0 or generation == 49:
            assert python(wrenn, sandbox, CHECK) == str(5 * (generation + 1))
    wrenn.sh(sandbox, "kill -0 $(cat /home/user/pid)")


class _Twin:
    """What the keeper's pattern must be, computed here."""

    def __init__(self) -> None:
        self._pattern, self._random = bytearray(8 << 20), random.Random(7)

    def step(self) -> str:
        for _ in range(40):
            at = self._random.randrange(0, len(self._pattern), 4096)
            page = self._random.randbytes(4096) if self._random.random() < 0.7 else bytes(4096)
            self._pattern[at : at + 4096] = page
        return hashlib.sha256(self._pattern).hexdigest()


def test_a_pause_frees_everything_and_a_second_one_is_refused(wrenn: Platform, sandbox: str) -> None:
    agent = wrenn.pid_of("hostagent")
    wrenn.run(sandbox, "true")
    assert len(machines_of(agent)) == 1
    pause(wrenn, sandbox)
    assert machines_of(agent) == []
    again = wrenn.client.post(f"/v1/sandboxes/{sandbox}/pause")
    assert (again.status_code, again.json()["error"]["code"]) == (409, "invalid_state")
    used = wrenn.client.post(f"/v1/sandboxes/{sandbox}/exec", json={"cmd": "true"})
    assert (used.status_code, used.json()["error"]["code"]) == (409, "invalid_state")
    time.sleep(5)  # two ticks of the reconciler
    assert wrenn.client.get(f"/v1/sandboxes/{sandbox}").json()["status"] == "paused"
    resume(wrenn, sandbox)
    assert wrenn.run(sandbox, "true")["exit_code"] == 0


def test_an_idle_sandbox_is_paused_and_goes_on_in_another_slot(wrenn: Platform) -> None:
    made = wrenn.create(timeout_sec=2)
    sandbox = made["id"]
    wrenn.sh(sandbox, "echo here >/dev/shm/ram")
    deadline = time.monotonic() + 60
    while (seen := wrenn.client.get(f"/v1/sandboxes/{sandbox}").json())["status"] != "paused":
        assert time.monotonic() < deadline, seen
        time.sleep(0.2)
    assert seen["status_slug"] == "idle_timeout"
    assert resume(wrenn, sandbox)["host_ip"] != made["host_ip"], "slots go round: it comes back in another"
    assert wrenn.sh(sandbox, "cat /dev/shm/ram") == "here\n"


def test_a_running_program_goes_on_and_its_port_answers_again(wrenn: Platform, sandbox: str) -> None:
    serve = "nohup python3 -m http.server --bind 127.0.0.1 8123 >/dev/null 2>&1"
    wrenn.sh(sandbox, f"cd /tmp && echo here >index.html && {serve} &")
    until_listening(wrenn, sandbox, 8123)
    fetch = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8123/').read().decode().strip())"
    assert python(wrenn, sandbox, fetch) == "here"
    for _ in range(2):
        pause(wrenn, sandbox)
        resume(wrenn, sandbox)
        assert python(wrenn, sandbox, fetch) == "here"


def test_the_clock_is_right_after_a_long_pause(wrenn: Platform, sandbox: str) -> None:
    """The gap is simulated: the guest's clock is set three days back, and its chronyd cannot repair it."""
    wrenn.sh(sandbox, "sudo pkill -STOP -f '[c]hronyd'; sudo date -s @$(($(date +%s) - 259200)) >/dev/null")
    pause(wrenn, sandbox)
    resume(wrenn, sandbox)
    before = time.time()
    inside = float(wrenn.sh(sandbox, "date +%s.%N"))
    assert before - 1 <= inside <= time.time() + 1


def test_a_named_snapshot_leaves_its_source_running_and_makes_sandboxes(
    wrenn: Platform, sandbox: str, snapshots: list[str]
) -> None:
    wrenn.sh(sandbox, "echo one >/home/user/mark; echo secret >/dev/shm/ram")
    made = post(wrenn, "/v1/snapshots", 201, sandbox_id=sandbox, name="marked")
    snapshots.append("marked")
    assert (made["name"], made["type"], made["vcpus"], made["memory_mb"]) == ("marked", "snapshot", 1, 512)
    assert wrenn.client.get(f"/v1/sandboxes/{sandbox}").json()["status"] == "running"
    wrenn.sh(sandbox, "echo two >/home/user/mark")
    assert wrenn.client.post("/v1/snapshots", json={"sandbox_id": sandbox, "name": "marked"}).status_code == 409
    clones = [wrenn.create(template="marked", vcpus=4, memory_mb=2048) for _ in range(2)]
    assert [(c["vcpus"], c["memory_mb"]) for c in clones] == [(1, 512)] * 2
    for clone in clones:
        assert wrenn.sh(clone["id"], "cat /home/user/mark /dev/shm/ram") == "one\nsecret\n"
        wrenn.sh(clone["id"], f"echo {clone['id']} >/home/user/mark")
    assert [wrenn.sh(c["id"], "cat /home/user/mark").strip() for c in clones] == [c["id"] for c in clones]
    assert wrenn.sh(sandbox, "cat /home/user/mark") == "two\n"
    assert wrenn.client.delete("/v1/snapshots/marked").status_code == 204
    assert wrenn.client.delete("/v1/snapshots/marked").status_code == 404
    assert wrenn.run(clones[0]["id"], "true")["exit_code"] == 0  # what it needs is kept
    pause(wrenn, clones[0]["id"])
    resume(wrenn, clones[0]["id"])
    assert wrenn.sh(clones[0]["id"], "cat /dev/shm/ram") == "secret\n"


def test_forks_are_siblings_that_share_nothing(wrenn: Platform, sandbox: str) -> None:
    wrenn.sh(sandbox, "echo common >/dev/shm/ram; echo common >/home/user/disk")
    children = [item["id"] for item in post(wrenn, f"/v1/sandboxes/{sandbox}/fork", 201, count=3)["items"]]
    assert len(set(children)) == 3
    first = [wrenn.run(child, "head", "-c", "32", "/dev/urandom")["stdout"] for child in children]
    assert len(set(map(str, first))) == 3
    family = [sandbox, *children]
    assert len({wrenn.sh(each, "cat /etc/machine-id") for each in family}) == 4
    addresses, tokens = zip(*(_address_and_token(wrenn, each) for each in family), strict=True)
    assert len(set(tokens)) == 4
    for address in addresses:  # and each guest takes its own alone
        assert [_lists_processes(address, token) for token in tokens] == [address == other for other in addresses]
    for child in children:
        assert wrenn.sh(child, "cat /dev/shm/ram /home/user/disk") == "common\ncommon\n"
        wrenn.sh(child, f"echo {child} >/home/user/disk")
    assert wrenn.sh(sandbox, "cat /home/user/disk") == "common\n"


def _address_and_token(wrenn: Platform, sandbox: str) -> tuple[str, str]:
    """Where a sandbox's envd answers on this host, and the token that it was told."""
    record = journal.read(wrenn.data_dir / "run" / sandbox)
    assert record is not None
    return slot(record.slot).host_ip, record.request.spec.access_token


def _lists_processes(address: str, token: str) -> bool:
    url, headers = f"http://{address}:{ENVD_PORT}/process.Process/List", {"x-access-token": token}
    answer = httpx.post(url, json={}, headers=headers, timeout=30)
    assert answer.status_code in {200, 401}
    return answer.status_code == 200


def test_a_rollback_puts_the_same_sandbox_back(wrenn: Platform, sandbox: str, snapshots: list[str]) -> None:
    wrenn.sh(sandbox, "echo before >/home/user/mark; echo before >/dev/shm/ram")
    post(wrenn, "/v1/snapshots", 201, sandbox_id=sandbox, name="before")
    snapshots.append("before")
    wrenn.sh(sandbox, "echo after >/home/user/mark; echo after >/dev/shm/ram")
    back = post(wrenn, f"/v1/sandboxes/{sandbox}/rollback", snapshot="before")
    assert (back["id"], back["status"]) == (sandbox, "running")
    assert wrenn.sh(sandbox, "cat /home/user/mark /dev/shm/ram") == "before\nbefore\n"
    tree = wrenn.client.get(f"/v1/sandboxes/{sandbox}/snapshots").json()["items"]
    assert "before" in [item["name"] for item in tree]


def test_a_killed_agent_takes_its_sandboxes_up_again(wrenn: Platform, sandbox: str) -> None:
    wrenn.sh(sandbox, "echo here >/dev/shm/ram; sleep 600 & echo $! >/home/user/pid")
    agent = wrenn.pid_of("hostagent")
    machines = machines_of(agent)
    os.kill(agent, signal.SIGKILL)
    assert _answers_again(wrenn, sandbox) == "here\n"
    wrenn.sh(sandbox, "kill -0 $(cat /home/user/pid)")
    assert all(Path(f"/proc/{pid}").exists() for pid in machines)  # the very same machines
    pause(wrenn, sandbox)
    resume(wrenn, sandbox)
    assert wrenn.sh(sandbox, "cat /dev/shm/ram") == "here\n"


def _answers_again(wrenn: Platform, sandbox: str) -> str:
    deadline = time.monotonic() + 60
    while True:
        answer = wrenn.client.post(f"/v1/sandboxes/{sandbox}/exec", json={"cmd": "cat", "args": ["/dev/shm/ram"]})
        if answer.status_code == 200:
            return str(answer.json()["stdout"])
        assert answer.status_code == 503, answer.text
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.2)


def test_a_dead_machine_offers_its_last_durable_build(wrenn: Platform, sandbox: str) -> None:
    agent = wrenn.pid_of("hostagent")
    wrenn.sh(sandbox, "echo kept >/dev/shm/ram")
    pause(wrenn, sandbox)
    resume(wrenn, sandbox)
    wrenn.sh(sandbox, "echo lost >/dev/shm/ram")
    (machine,) = machines_of(agent)
    os.kill(machine, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while (found := wrenn.client.get(f"/v1/sandboxes/{sandbox}").json())["status"] != "error":
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    time.sleep(5)  # nothing goes back in time by itself
    assert wrenn.client.get(f"/v1/sandboxes/{sandbox}").json()["status"] == "error"
    resume(wrenn, sandbox)
    assert wrenn.sh(sandbox, "cat /dev/shm/ram") == "kept\n"
