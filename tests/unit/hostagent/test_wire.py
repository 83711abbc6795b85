from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

import pytest

from tests.unit.hostagent.world import CAPABILITIES
from wrenn_sandbox.core.errors import Invalid
from wrenn_sandbox.core.spec import MAX_CHILDREN, Egress, Lifetime, NetworkPolicy, Shape, TimeoutAction
from wrenn_sandbox.hostagent import wire
from wrenn_sandbox.hostagent.guest_processes import Terminal
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb


def create(**fields: object) -> pb.CreateSandboxRequest:
    message = pb.CreateSandboxRequest(sandbox_id=f"sb-{uuid4()}", access_token="t" * 32, vcpus=1, memory_mb=512)
    for name, value in fields.items():
        setattr(message, name, value)
    return message


def slug_of(work: Callable[[], object]) -> str:
    with pytest.raises(Invalid) as refused:
        work()
    assert len(refused.value.message) > 20
    return refused.value.slug


def test_shapes_round_up_and_zero_is_the_default() -> None:
    assert wire.create_request(create(vcpus=3, memory_mb=700), CAPABILITIES).spec.shape == Shape(4, 1024)
    assert wire.create_request(create(vcpus=0, memory_mb=0), CAPABILITIES).spec.shape == Shape(1, 512)


@pytest.mark.parametrize("name", ["", "base", "minimal"])
def test_names_of_the_base_template(name: str) -> None:
    assert wire.create_request(create(template=name), CAPABILITIES).spec.template == "base"


@pytest.mark.parametrize(
    ("field", "value", "slug"),
    [
        ("template", "nope", "template_not_found"),
        ("vcpus", 10_000, "invalid_size"),
        ("vcpus", -1, "invalid_size"),
        ("memory_mb", -5, "invalid_size"),
        ("memory_mb", 1 << 20, "invalid_size"),
        ("sandbox_id", "sb-nope", "invalid_id"),
        ("sandbox_id", "../../etc", "invalid_id"),
        ("access_token", "", "invalid_access_token"),
        ("access_token", "short", "invalid_access_token"),
        ("access_token", "t" * 32 + "\r\nx-other: 1", "invalid_access_token"),
        ("access_token", "t" * 1000, "invalid_access_token"),
        ("template_id", "../../etc/passwd", "invalid_id"),
        ("template_id", "tpl-1", "invalid_id"),
        ("default_env", {"A=B": "1"}, "invalid_env"),
        ("default_env", {"A": "nul\0"}, "invalid_env"),
        ("default_env", {"": "1"}, "invalid_env"),
        ("default_user", "a b", "invalid_user"),
        ("default_user", "-root", "invalid_user"),
        ("default_workdir", "/a/../b", "invalid_path"),
        ("timeout_sec", -1, "invalid_lifetime"),
        ("network", pb.NetworkPolicy(deny_out=["10.0.0.0/33"]), "invalid_network"),
        ("network", pb.NetworkPolicy(allow_out=["example.com"]), "invalid_network"),
    ],
)
def test_bad_creates_are_refused_with_a_slug_and_a_sentence(field: str, value: object, slug: str) -> None:
    assert slug_of(lambda: wire.create_request(create(**{field: value}), CAPABILITIES)) == slug


def test_a_template_is_named_by_its_plain_uuid() -> None:
    given = "11111111-2222-4333-8444-555555555555"
    assert wire.create_request(create(template_id=given), CAPABILITIES).template_id == given
    assert wire.create_request(create(), CAPABILITIES).template_id == "00000000-0000-0000-0000-000000000000"


def test_lifetime_and_network_pass() -> None:
    message = create(
        lifetime=pb.Lifetime(idle_timeout_s=5, idle_action=pb.TimeoutAction.KILL, ends_at_unix=9.5),
        network=pb.NetworkPolicy(egress=pb.EgressMode.ALLOW_LIST, allow_out=["192.0.2.0/24"]),
    )
    spec = wire.create_request(message, CAPABILITIES).spec
    assert spec.lifetime == Lifetime(5, TimeoutAction.KILL, 9.5, TimeoutAction.KILL)
    assert spec.network == NetworkPolicy(Egress.ALLOW_LIST, ("192.0.2.0/24",))


def test_the_older_idle_timeout_field_counts_when_there_is_no_lifetime() -> None:
    assert wire.create_request(create(timeout_sec=7), CAPABILITIES).spec.lifetime.idle_timeout_s == 7


@pytest.mark.parametrize("path", ["/a", "a/b", "~/x", "/a/..b", "/...", "/ü"])
def test_paths_that_pass(path: str) -> None:
    assert wire.path(path) == path


@pytest.mark.parametrize("path", ["", "..", "/a/../b", "../a", "/a/..", "/nul\0", "/" + "a" * 4096])
def test_paths_that_are_refused(path: str) -> None:
    assert slug_of(lambda: wire.path(path)) == "invalid_path"


def command(cmd: str, *args: str) -> object:
    return wire.command(cmd, args, given_envs={}, cwd="", as_user="")


def test_commands() -> None:
    assert slug_of(lambda: command("")) == "invalid_command"
    assert slug_of(lambda: command("a", "b\0")) == "invalid_command"
    assert slug_of(lambda: command("a", "x" * 200_000)) == "invalid_command"
    made = wire.command("a", ["b", ""], given_envs={"K": "v"}, cwd="/c", as_user="1000")
    assert (made.cmd, made.args, made.envs, made.cwd, made.user) == ("a", ("b", ""), {"K": "v"}, "/c", "1000")


def test_processes_are_named_by_pid_or_tag() -> None:
    from protobuf import Oneof

    assert wire.process_ref(pb.KillProcessRequest(selector=Oneof("pid", 7))) == 7
    assert wire.process_ref(pb.ConnectProcessRequest(selector=Oneof("tag", "t"))) == "t"
    assert slug_of(lambda: wire.process_ref(pb.KillProcessRequest())) == "invalid_process"
    assert slug_of(lambda: wire.process_ref(pb.KillProcessRequest(selector=Oneof("tag", "")))) == "invalid_process"
    assert slug_of(lambda: wire.tag("")) == "invalid_process"
    assert slug_of(lambda: wire.tag("x" * 300)) == "invalid_process"


def test_terminals_and_timeouts() -> None:
    assert wire.terminal(0, 0) == Terminal(80, 24) and wire.terminal(100, 50) == Terminal(100, 50)
    assert slug_of(lambda: wire.terminal(20_000, 1)) == "invalid_size"
    assert (wire.timeout_s(0, 30.0), wire.timeout_s(5, 30.0), wire.timeout_s(0, None)) == (30.0, 5.0, None)
    assert slug_of(lambda: wire.timeout_s(-1, None)) == "invalid_timeout"


def test_a_fork_has_from_one_to_a_hundred_children() -> None:
    def of(count: int) -> pb.ForkSandboxRequest:
        return pb.ForkSandboxRequest(children=[create() for _ in range(count)])

    assert len(wire.children(of(MAX_CHILDREN), CAPABILITIES)) == MAX_CHILDREN == 100
    assert slug_of(lambda: wire.children(of(MAX_CHILDREN + 1), CAPABILITIES)) == "invalid_size"
    assert slug_of(lambda: wire.children(of(0), CAPABILITIES)) == "invalid_id"
