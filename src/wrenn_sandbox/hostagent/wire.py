"""The wire's messages into our types and back. All checks of what a caller sent are here; they raise Invalid."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID

from wrenn_sandbox import __version__
from wrenn_sandbox.core.errors import Invalid
from wrenn_sandbox.core.ids import BASE_TEMPLATE_ID, BuildId, SandboxId, TemplateId
from wrenn_sandbox.core.spec import (
    DEFAULT_SHAPE,
    MAX_CHILDREN,
    Egress,
    Lifetime,
    NetworkPolicy,
    SandboxSpec,
    TimeoutAction,
    round_up,
)
from wrenn_sandbox.hostagent.builds import Kept
from wrenn_sandbox.hostagent.guest_processes import Command, ProcessRef, Terminal
from wrenn_sandbox.hostagent.request import Request
from wrenn_sandbox.hostagent.sandbox import Sandbox, parts_of
from wrenn_sandbox.hostagent.templates import TEMPLATE_NAME
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb
from wrenn_sandbox.vmm.driver import Capabilities

#: Names a caller may use for the one template there is so far.
_TEMPLATE_ALIASES = frozenset({"", TEMPLATE_NAME, "minimal", str(BASE_TEMPLATE_ID)})
#: MAX_ARG_STRLEN of execve(2) less the name: a longer one cannot be given to a program.
_MAX_STRING_BYTES = 128 * 1024 - 1
_MAX_PATH_BYTES = 4096  # PATH_MAX of limits.h
_USER_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}\$?|[0-9]{1,10}")
#: It travels as a header. The control plane's has 64 characters.
_ACCESS_TOKEN = re.compile(r"[!-~]{16,512}")
_MAX_TERMINAL = 10_000
_MAX_TAG = 256

_ACTIONS = {
    pb.TimeoutAction.UNSPECIFIED: None,
    pb.TimeoutAction.KILL: TimeoutAction.KILL,
    pb.TimeoutAction.PAUSE: TimeoutAction.PAUSE,
}
_ACTION_CODES = {TimeoutAction.KILL: pb.TimeoutAction.KILL, TimeoutAction.PAUSE: pb.TimeoutAction.PAUSE}
_EGRESS = {
    pb.EgressMode.UNSPECIFIED: Egress.OPEN,
    pb.EgressMode.OPEN: Egress.OPEN,
    pb.EgressMode.CLOSED: Egress.CLOSED,
    pb.EgressMode.ALLOW_LIST: Egress.ALLOW_LIST,
}


def create_request(message: pb.CreateSandboxRequest, limits: Capabilities, *, from_build: bool = False) -> Request:
    """What to make; the shape is rounded up to one this host offers, unless a build fixes it."""
    from_build = from_build or bool(message.build_id)
    if not from_build and message.template not in _TEMPLATE_ALIASES:
        raise Invalid(
            f"There is no template {message.template[:80]!r}: use {TEMPLATE_NAME!r}.", slug="template_not_found"
        )
    shape = round_up(
        message.vcpus or DEFAULT_SHAPE.vcpus,
        message.memory_mb or DEFAULT_SHAPE.memory_mib,
        max_vcpus=limits.max_vcpus,
        max_memory_mib=limits.max_memory_mib,
    )
    if not _ACCESS_TOKEN.fullmatch(message.access_token):
        raise Invalid(
            "access_token must have 16 to 512 printable ASCII characters: it guards the guest.",
            slug="invalid_access_token",
        )
    spec = SandboxSpec(
        template=message.template if from_build else TEMPLATE_NAME,
        shape=shape,
        lifetime=lifetime(message.lifetime or pb.Lifetime(idle_timeout_s=message.timeout_sec)),
        network=network_policy(message.network or pb.NetworkPolicy()),
        envs=envs(message.default_env),
        default_user=user(message.default_user),
        default_workdir=path(message.default_workdir) if message.default_workdir else "",
        access_token=message.access_token,
    )
    build = build_id(message.build_id) if message.build_id else None
    return Request(SandboxId.parse(message.sandbox_id), spec, template_id(message.template_id), build)


def resume_request(message: pb.ResumeSandboxRequest, limits: Capabilities) -> Request:
    """What to resume, and from which build."""
    wanted = message.sandbox or pb.CreateSandboxRequest()
    request = create_request(wanted, limits, from_build=True)
    if request.build_id is None or str(request.id) != str(SandboxId.parse(message.sandbox_id)):
        raise Invalid("sandbox must name the sandbox to resume, and the build to resume it from.", slug="invalid_id")
    return request


def children(message: pb.ForkSandboxRequest, limits: Capabilities) -> list[Request]:
    """The sandboxes to make of one: at least one, none twice, not too many."""
    requests = [create_request(child, limits, from_build=True) for child in message.children]
    if not requests or len({request.id for request in requests}) < len(requests):
        raise Invalid("A fork needs children, and each an id of its own.", slug="invalid_id")
    if len(requests) > MAX_CHILDREN:
        raise Invalid(f"A fork makes at most {MAX_CHILDREN} children: fork again for more.", slug="invalid_size")
    return requests


def build_id(text: str) -> UUID:
    """A build's plain UUID."""
    return BuildId.parse(f"{BuildId.prefix}-{text}").value


def template(text: str) -> TemplateId:
    """The template that holds a snapshot: a plain UUID, and not that of the base template."""
    found = TemplateId.parse(f"{TemplateId.prefix}-{text}")
    if found == BASE_TEMPLATE_ID:
        raise Invalid("The base template is no snapshot: give the snapshot's template_id.", slug="invalid_id")
    return found


def build(kept: Kept, holders: Sequence[str]) -> pb.Build:
    """A build for an answer. Blocks: its size is looked up."""
    made, manifest = kept.build, kept.build.manifest
    return pb.Build(
        build_id=str(made.id),
        parent_id=manifest.parent,
        size_bytes=made.size_bytes,
        created_at_unix=manifest.created_at_unix_s,
        vcpus=manifest.shape.vcpus,
        memory_mb=manifest.shape.memory_mib,
        sandbox_id=manifest.sandbox_id,
        holders=list(holders),
        stopped_ms=kept.stopped_ms,
        captured_ms=kept.captured_ms,
        durable_ms=kept.durable_ms,
    )


def created(sandbox: Sandbox, limits: Capabilities) -> pb.CreateSandboxResponse:
    """A sandbox that was just made."""
    shape = sandbox.request.spec.shape
    return pb.CreateSandboxResponse(
        sandbox_id=str(sandbox.request.id),
        status=sandbox.state.value,
        host_ip=sandbox.host_ip,
        metadata=metadata(limits),
        vcpus=shape.vcpus,
        memory_mb=shape.memory_mib,
        phases=phases(sandbox),
    )


def phases(sandbox: Sandbox) -> list[pb.Phase]:
    """How long each phase of its last restore took."""
    return [pb.Phase(name=phase.name, ms=phase.ms) for phase in sandbox.watch.phases]


def metadata(limits: Capabilities) -> dict[str, str]:
    """What a sandbox runs on."""
    return {"driver": driver_name(limits), "version": __version__}


def driver_name(limits: Capabilities) -> str:
    """E.g. ``qemu/tcg``."""
    return f"{limits.driver}/{limits.accelerator}"


def template_id(text: str) -> str:
    """A template's plain UUID; empty stands for the base template's."""
    if not text:
        return str(BASE_TEMPLATE_ID.value)
    return str(TemplateId.parse(f"{TemplateId.prefix}-{text}").value)


def lifetime(message: pb.Lifetime) -> Lifetime:
    """Idle timeout and deadline."""
    if message.idle_timeout_s < 0 or message.ends_at_unix < 0:
        raise Invalid("idle_timeout_s and ends_at must not be negative; 0 switches them off.", slug="invalid_lifetime")
    return Lifetime(
        idle_timeout_s=message.idle_timeout_s,
        idle_action=_ACTIONS.get(message.idle_action) or TimeoutAction.PAUSE,
        ends_at_unix_s=message.ends_at_unix,
        deadline_action=_ACTIONS.get(message.deadline_action) or TimeoutAction.KILL,
    )


def network_policy(message: pb.NetworkPolicy) -> NetworkPolicy:
    """What a sandbox may reach."""
    egress = _EGRESS.get(message.egress)
    if egress is None:
        raise Invalid(f"There is no egress mode {int(message.egress)}.", slug="invalid_network")
    return NetworkPolicy(egress, _cidrs(message.allow_out), _cidrs(message.deny_out))


def _cidrs(texts: Sequence[str]) -> tuple[str, ...]:
    try:
        return tuple(str(ipaddress.IPv4Network(text)) for text in texts)
    except ValueError as error:
        raise Invalid(f"Not an IPv4 network such as 192.0.2.0/24: {error}.", slug="invalid_network") from error


def envs(given: Mapping[str, str]) -> dict[str, str]:
    """Environment variables a program can be given."""
    for name, value in given.items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise Invalid(f"{name[:80]!r} cannot be an environment variable.", slug="invalid_env")
        if len(name.encode()) + len(value.encode()) > _MAX_STRING_BYTES:
            raise Invalid(f"The environment variable {name[:80]!r} is too long.", slug="invalid_env")
    return dict(given)


def path(text: str) -> str:
    """A path in the guest: no NUL, no ``..`` component, not empty."""
    if not text:
        raise Invalid("path must not be empty.", slug="invalid_path")
    if "\0" in text:
        raise Invalid("path must not contain a NUL character.", slug="invalid_path")
    if ".." in text.split("/"):
        raise Invalid("path must not contain '..': give the path it stands for.", slug="invalid_path")
    if len(text.encode()) > _MAX_PATH_BYTES:
        raise Invalid(f"path must not be longer than {_MAX_PATH_BYTES} bytes.", slug="invalid_path")
    return text


def user(text: str) -> str:
    """A user name in the guest, or empty for the default."""
    if text and not _USER_NAME.fullmatch(text):
        raise Invalid(f"{text[:80]!r} cannot be a user name.", slug="invalid_user")
    return text


def command(
    cmd: str,
    args: Iterable[str],
    *,
    given_envs: Mapping[str, str],
    cwd: str,
    as_user: str,
) -> Command:
    """A process to start, without tag, terminal or input."""
    words = [cmd, *args]
    if not cmd:
        raise Invalid("cmd must not be empty.", slug="invalid_command")
    if any("\0" in word for word in words):
        raise Invalid("cmd and args must not contain a NUL character.", slug="invalid_command")
    if any(len(word.encode()) > _MAX_STRING_BYTES for word in words):
        raise Invalid("cmd or one of args is longer than a program can be given.", slug="invalid_command")
    return Command(
        cmd=cmd,
        args=tuple(words[1:]),
        envs=envs(given_envs),
        cwd=path(cwd) if cwd else "",
        user=user(as_user),
    )


def terminal(cols: int, rows: int) -> Terminal:
    """A terminal's size; 0 stands for 80 and 24."""
    if cols > _MAX_TERMINAL or rows > _MAX_TERMINAL:
        raise Invalid(f"cols and rows must not be above {_MAX_TERMINAL}.", slug="invalid_size")
    return Terminal(cols or 80, rows or 24)


def process_ref(message: pb.KillProcessRequest | pb.ConnectProcessRequest) -> ProcessRef:
    """The process a request names."""
    chosen = message.selector
    if chosen is None or not chosen.value:
        raise Invalid("Name the process by pid or by tag.", slug="invalid_process")
    return chosen.value


def tag(text: str) -> str:
    """The name of a process; raises Invalid when it is empty."""
    if not text or "\0" in text or len(text) > _MAX_TAG:
        raise Invalid(f"tag must have 1 to {_MAX_TAG} characters and no NUL.", slug="invalid_process")
    return text


def timeout_s(seconds: int, default_s: float | None) -> float | None:
    """How long a command may run."""
    if seconds < 0:
        raise Invalid("timeout_sec must not be negative.", slug="invalid_timeout")
    return float(seconds) if seconds else default_s


def sandbox_info(sandbox: Sandbox, unix_offset_s: float) -> pb.SandboxInfo:
    """A sandbox for ListSandboxes; ``unix_offset_s`` is wall-clock less monotonic time."""
    spec = sandbox.request.spec
    limits = sandbox.timers.lifetime
    parts = parts_of(sandbox)
    descends = parts is not None and bool(parts.ground.parent.parent)  # a base template descends from nothing
    return pb.SandboxInfo(
        sandbox_id=str(sandbox.request.id),
        status=sandbox.state.value,
        template=spec.template,
        vcpus=spec.shape.vcpus,
        memory_mb=spec.shape.memory_mib,
        host_ip=sandbox.host_ip,
        created_at_unix=int(sandbox.created_at_unix_s),
        last_active_at_unix=int(sandbox.timers.last_use_s + unix_offset_s),
        timeout_sec=limits.idle_timeout_s,
        template_id=sandbox.request.template_id,
        reason=sandbox.reason,
        reason_slug=sandbox.reason_slug,
        lifetime=pb.Lifetime(
            idle_timeout_s=limits.idle_timeout_s,
            idle_action=_ACTION_CODES[limits.idle_action],
            ends_at_unix=limits.ends_at_unix_s,
            deadline_action=_ACTION_CODES[limits.deadline_action],
        ),
        progress=sandbox.watch.doing,
        build_id=str(sandbox.build_id) if sandbox.build_id else "",
        current_build_id=str(parts.ground.parent_id) if parts is not None and descends else "",
        stalled=parts.machine.stalled if parts is not None else "",
    )
