from __future__ import annotations

import asyncio
import base64
import json

import pytest

from wrenn_sandbox.core.errors import Invalid, Unauthenticated, Unavailable
from wrenn_sandbox.envd.context import GuestContext
from wrenn_sandbox.envd.init import Duties, Initializer, parse

ENTROPY = base64.b64encode(bytes(range(32))).decode()
FULL: dict[str, object] = {
    "envVars": {"A": "1"},
    "accessToken": "tok",
    "timestamp": "2026-11-23T12:00:00Z",
    "defaultUser": "user",
    "defaultWorkdir": "/work",
    "sandboxId": "sb-1",
    "templateId": "tpl-1",
    "machineId": "a" * 32,
    "hostname": "box",
    "entropy": ENTROPY,
}


class Guest:
    """An initializer over duties that only note what they are asked for, and can be told to fail."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.fails = ""
        self.context = GuestContext()
        self.initializer = Initializer(
            self.context,
            self,
            Duties(
                reseed=lambda data: self.do("reseed " + data[:2].hex()),
                write_files=lambda sandbox, template: self.do(f"files {sandbox} {template}"),
                set_machine_id=lambda text: self.do("machine-id " + text[:2]),
                set_hostname=lambda text: self.do("hostname " + text),
                step_clock=lambda: self.do("clock"),
            ),
        )

    def do(self, what: str) -> float:
        if self.fails and what.startswith(self.fails):
            raise PermissionError(what)
        self.done.append(what)
        return 0.0

    async def start(self) -> None:
        self.done.append("ports")

    def init(self, *, offered: str = "", **fields: object) -> None:
        body = json.dumps(fields).encode() if fields else b""
        asyncio.run(self.initializer.handle(body, offered.encode()))


def test_duties_come_in_order_before_the_token_is_set() -> None:
    guest = Guest()
    guest.init(**FULL)
    assert guest.done == ["reseed 0001", "machine-id aa", "hostname box", "files sb-1 tpl-1", "clock", "ports"]
    context = guest.context
    assert (context.access_token, context.default_user, context.default_workdir) == ("tok", "user", "/work")
    assert (context.sandbox_id, context.template_id) == ("sb-1", "tpl-1")
    assert context.envs == {
        "A": "1",
        **{
            f"{p}_{k}": v
            for p in ("WRENN", "E2B")
            for k, v in {"SANDBOX": "true", "SANDBOX_ID": "sb-1", "TEMPLATE_ID": "tpl-1"}.items()
        },
    }


@pytest.mark.parametrize("duty", ["reseed", "machine-id", "hostname", "files", "clock"])
def test_a_duty_that_fails_leaves_the_guest_closed(duty: str) -> None:
    guest = Guest()
    guest.fails = duty
    with pytest.raises(Unavailable) as caught:
        guest.init(**FULL)
    assert caught.value.slug == "init_failed"
    assert guest.context.access_token is None
    assert guest.context.envs == {}
    guest.fails = ""
    guest.init(**FULL)
    assert guest.context.access_token == "tok"


@pytest.mark.parametrize("entropy", [None, "", "AAAA", "not base64!", base64.b64encode(bytes(31)).decode(), 7])
def test_without_enough_entropy_nothing_is_done(entropy: object) -> None:
    guest = Guest()
    fields = {k: v for k, v in FULL.items() if k != "entropy"} | ({"entropy": entropy} if entropy is not None else {})
    with pytest.raises(Invalid):
        guest.init(**fields)
    assert guest.done == []
    assert guest.context.access_token is None


def test_duties_can_be_switched_off_by_a_test() -> None:
    guest = Guest()
    guest.init(accessToken="tok", reseed=False, clockStep=False)
    assert guest.done == ["ports"]
    assert guest.context.access_token == "tok"


@pytest.mark.parametrize("body", [b"", b"  ", b"{}"])
def test_an_empty_body_starts_the_ports_and_sets_nothing(body: bytes) -> None:
    guest = Guest()
    asyncio.run(guest.initializer.handle(body, b""))
    assert guest.done == ["clock", "ports"]
    assert guest.context.access_token is None


def test_token_rules() -> None:
    guest = Guest()
    guest.init(**FULL)
    guest.done.clear()
    for fields, offered in (({"accessToken": "other", "reseed": False}, ""), ({"reseed": False}, ""), ({}, "other")):
        with pytest.raises(Unauthenticated):
            guest.init(offered=offered, **fields)
    assert guest.done == []
    guest.init(accessToken="tok", entropy=ENTROPY)
    guest.init(offered="tok")
    guest.init(accessToken="new", entropy=ENTROPY, offered="tok")
    assert guest.context.access_token == "new"
    guest.init(offered="new", envVars={}, entropy=ENTROPY)
    assert guest.context.access_token == "new"


def at(second: int, *, sandbox: str = "sb-1", env: str = "", token: str = "tok") -> dict[str, object]:
    return {
        "accessToken": token,
        "sandboxId": sandbox,
        "timestamp": f"2026-11-23T12:00:{second:02}.000000001Z",
        "envVars": {"A": env or str(second)},
        "entropy": ENTROPY,
    }


@pytest.mark.parametrize("second", [10, 9])
def test_a_stale_request_does_its_duties_and_sets_nothing(second: int) -> None:
    guest = Guest()
    guest.init(**at(10))
    guest.done.clear()
    guest.init(**at(second, env="stale"))
    assert guest.context.envs["A"] == "10"
    assert guest.done == ["reseed 0001", "files sb-1 ", "clock", "ports"]


def test_order_goes_by_timestamp() -> None:
    guest = Guest()
    for second, expected in ((10, "10"), (12, "12"), (11, "12"), (13, "13")):
        guest.init(**at(second))
        assert guest.context.envs["A"] == expected


def test_without_a_timestamp_the_last_to_come_counts() -> None:
    guest = Guest()
    guest.init(**at(10))
    guest.init(accessToken="tok", envVars={"A": "plain"}, entropy=ENTROPY)
    assert guest.context.envs["A"] == "plain"
    guest.init(**at(9))
    assert guest.context.envs["A"] == "plain"


def test_another_sandbox_is_not_ordered_against_the_one_before() -> None:
    guest = Guest()
    guest.init(**at(30))
    guest.init(**at(5, sandbox="sb-2", token="two"), offered="tok")
    assert (guest.context.sandbox_id, guest.context.access_token, guest.context.envs["A"]) == ("sb-2", "two", "5")
    assert guest.context.envs["WRENN_SANDBOX_ID"] == "sb-2"


def test_a_new_set_of_variables_replaces_the_old_one() -> None:
    guest = Guest()
    guest.init(**FULL)
    guest.init(accessToken="tok", envVars={"B": "2"}, entropy=ENTROPY)
    assert "A" not in guest.context.envs
    guest.init(accessToken="tok", entropy=ENTROPY)
    assert guest.context.envs["B"] == "2"
    assert guest.context.envs["E2B_SANDBOX_ID"] == "sb-1"


def test_forget() -> None:
    guest = Guest()
    guest.init(**at(10))
    guest.initializer.forget()
    assert guest.context.access_token is None
    guest.init(**at(1))
    assert guest.context.envs["A"] == "1"


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01t00:00:01.5z", 1_500_000_000),
        ("1970-01-01T01:00:00.000000001+01:00", 1),
        ("2026-11-23T12:34:56.123456789Z", 1_795_437_296_123_456_789),
        ("2026-11-23T12:34:56.1234567891Z", 1_795_437_296_123_456_789),
        (5, 5_000_000_000),
        (5.25, 5_250_000_000),
    ],
)
def test_timestamps(text: object, nanoseconds: int) -> None:
    assert parse(json.dumps({"timestamp": text, "reseed": False}).encode()).timestamp_ns == nanoseconds


@pytest.mark.parametrize(
    "fields",
    [
        {"timestamp": "yesterday"},
        {"timestamp": "2026-13-01T00:00:00Z"},
        {"timestamp": True},
        {"timestamp": -1},
        {"envVars": []},
        {"envVars": {"A": 1}},
        {"envVars": {"": "x"}},
        {"envVars": {"A=B": "x"}},
        {"envVars": {"A": "x\0"}},
        {"accessToken": 5},
        {"accessToken": "a\0b"},
        {"machineId": "short"},
        {"hostname": "a b"},
        {"sandboxId": "two\nlines"},
        {"sandboxId": "x" * 300},
        {"defaultUser": {}},
    ],
)
def test_bad_values(fields: dict[str, object]) -> None:
    with pytest.raises(Invalid):
        parse(json.dumps({**fields, "reseed": False}).encode())


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b"\xff", b'"x"'])
def test_bad_json(body: bytes) -> None:
    with pytest.raises(Invalid) as caught:
        parse(body)
    assert caught.value.slug == "invalid_json"


def test_secrets_stay_out_of_representations() -> None:
    shown = repr(parse(json.dumps(FULL).encode()))
    assert "tok" not in shown
    assert "entropy" not in shown
