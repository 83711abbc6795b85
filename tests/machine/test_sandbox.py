"""A sandbox on real QEMU, through the whole API."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import time

from tests.running import Platform
from tests.traces import machines_of


def test_a_program_runs_in_its_own_machine(wrenn: Platform, sandbox: str) -> None:
    assert wrenn.sh(sandbox, "uname -r").strip() != os.uname().release
    answer = wrenn.run(sandbox, "python3", "-c", "import sys; print(6 * 7); print('e', file=sys.stderr); sys.exit(3)")
    assert (answer["stdout"], answer["stderr"], answer["exit_code"]) == ("42\n", "e\n", 3)


def test_the_guest_is_what_clients_expect(wrenn: Platform, sandbox: str) -> None:
    assert wrenn.sh(sandbox, "whoami; pwd; sudo -n whoami").split() == ["user", "/home/user", "root"]
    tools = "bash python3 pip node npm git curl sudo gcc make socat"
    assert wrenn.sh(sandbox, f"for t in {tools}; do command -v $t >/dev/null || echo missing $t; done") == ""
    assert wrenn.sh(sandbox, "cat /proc/1/comm").strip() == "tini"
    assert sandbox in wrenn.sh(sandbox, "cat /run/wrenn/.WRENN_SANDBOX_ID; echo $WRENN_SANDBOX_ID")


def test_a_missing_command_is_exit_127(wrenn: Platform, sandbox: str) -> None:
    assert wrenn.run(sandbox, "/no/such/command")["exit_code"] == 127


def test_environment_reaches_every_process(wrenn: Platform) -> None:
    made = wrenn.create(envs={"COLOUR": "grün", "SIZE": "1"})["id"]
    script = "echo $COLOUR $SIZE"
    assert wrenn.sh(made, script, envs={"SIZE": "2"}) == "grün 2\n"
    assert wrenn.sh(made, script) == "grün 1\n"


def test_siblings_share_nothing(wrenn: Platform) -> None:
    one, two = (str(wrenn.create()["id"]) for _ in range(2))
    wrenn.sh(one, "echo secret > /home/user/f; echo x > /tmp/f")
    assert wrenn.run(two, "cat", "/home/user/f")["exit_code"] == 1
    identities = "cat /etc/machine-id; cat /run/wrenn/.WRENN_SANDBOX_ID"
    assert set(wrenn.sh(one, identities).split()).isdisjoint(wrenn.sh(two, identities).split())


def test_the_death_of_one_machine_is_told_and_disturbs_no_other(wrenn: Platform) -> None:
    agent = wrenn.pid_of("hostagent")
    other = str(wrenn.create()["id"])
    others = set(machines_of(agent))
    victim = str(wrenn.create()["id"])
    (machine,) = set(machines_of(agent)) - others
    os.kill(machine, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while (seen := wrenn.client.get(f"/v1/sandboxes/{victim}").json())["status"] != "error":
        assert time.monotonic() < deadline, seen
        time.sleep(0.1)
    assert seen["status_slug"] == "vmm_died"
    assert "signal 9" in seen["status_reason"]
    refused = wrenn.client.post(f"/v1/sandboxes/{victim}/exec", json={"cmd": "true"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "invalid_state")
    assert wrenn.sh(other, "echo alive") == "alive\n"


def test_twenty_at_once_all_succeed(wrenn: Platform) -> None:
    with concurrent.futures.ThreadPoolExecutor(20) as threads:
        made = list(threads.map(lambda _: wrenn.create()["id"], range(20)))
        answers = list(threads.map(lambda i: wrenn.run(i, "hostname")["exit_code"], made))
    assert len(set(made)) == 20
    assert answers == [0] * 20


def test_another_shape_is_booted_once_and_has_its_size(wrenn: Platform) -> None:
    made = wrenn.create(vcpus=2, memory_mb=700)
    assert (made["vcpus"], made["memory_mb"]) == (2, 1024)
    assert wrenn.sh(made["id"], "nproc").strip() == "2"
    total_kib = int(wrenn.sh(made["id"], "awk '/MemTotal/ {print $2}' /proc/meminfo"))
    assert 900 * 1024 < total_kib < 1024 * 1024


def test_output_is_binary_safe_and_complete(wrenn: Platform, sandbox: str) -> None:
    answer = wrenn.run(sandbox, "head", "-c", "3000000", "/dev/zero")
    assert len(str(answer["stdout"])) in {3_000_000, 4_000_000}
    assert wrenn.run(sandbox, "printf", r"\377")["encoding"] == "base64"


def test_a_timeout_keeps_the_output_so_far_and_kills_the_group(wrenn: Platform, sandbox: str) -> None:
    answer = wrenn.client.post(
        f"/v1/sandboxes/{sandbox}/exec",
        json={"cmd": "sh", "args": ["-c", "echo early; sleep 987 & sleep 987"], "timeout_sec": 2},
    )
    assert "early" in answer.text
    assert wrenn.run(sandbox, "pgrep", "-f", "sleep 987")["exit_code"] == 1


def test_a_background_child_does_not_hold_the_answer(wrenn: Platform, sandbox: str) -> None:
    assert wrenn.sh(sandbox, "sleep 300 & echo done", timeout_sec=60) == "done\n"


def test_files_survive_the_way_in_and_out(wrenn: Platform, sandbox: str) -> None:
    content = os.urandom(3 << 20)
    path = f"/v1/sandboxes/{sandbox}/files"
    assert wrenn.client.put(path, params={"path": "/home/user/a b/ü.bin"}, content=content).is_success
    assert wrenn.client.get(path, params={"path": "a b/ü.bin"}).content == content
    assert wrenn.sh(sandbox, "stat -c '%U %a' 'a b/ü.bin'").split() == ["user", "644"]
    missing = wrenn.client.get(path, params={"path": "/nothing"})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    assert wrenn.client.get(path, params={"path": "/dev/zero"}).status_code == 400


def test_a_server_inside_answers_by_its_name(wrenn: Platform, sandbox: str) -> None:
    wrenn.client.post(
        f"/v1/sandboxes/{sandbox}/exec",
        json={"cmd": "python3", "args": ["-m", "http.server", "8123", "--bind", "127.0.0.1"], "background": True},
    ).raise_for_status()
    deadline = time.monotonic() + 60
    while True:
        answer = wrenn.client.get("/", headers={"Host": f"8123-{sandbox}.localhost"})
        if answer.status_code == 200:
            break
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.3)
    assert "Directory listing" in answer.text
    closed = wrenn.client.get("/", headers={"Host": f"81-{sandbox}.localhost"})
    assert (closed.status_code, closed.json()["port"]) == (502, 81)
    assert wrenn.client.get("/health", headers={"Host": f"49983-{sandbox}.localhost"}).status_code == 403


def test_idle_timeout_ends_a_sandbox(wrenn: Platform) -> None:
    made = wrenn.create(timeout_sec=2, idle_action="kill")["id"]
    deadline = time.monotonic() + 60
    while (seen := wrenn.client.get(f"/v1/sandboxes/{made}").json())["status"] != "stopped":
        assert time.monotonic() < deadline, seen
        time.sleep(0.2)
    assert seen["status_slug"] == "idle_timeout"
