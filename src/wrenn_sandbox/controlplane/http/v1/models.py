"""What version 1 takes and gives, as JSON. Unknown fields are refused, so that a typing error is not silence."""

from __future__ import annotations

import base64
from datetime import datetime
from ipaddress import AddressValueError, IPv4Network, NetmaskValueError
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from wrenn_sandbox.core.spec import MAX_CHILDREN, Egress, TimeoutAction

YEAR_S = 366 * 24 * 3600
_MAX_ENVIRONMENT_CHARS = 256 * 1024
_MAX_METADATA = 64


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not contain a NUL character")
    return text


def _env_name(name: str) -> str:
    if not name or "=" in name:
        raise ValueError("must not be empty and must not contain '='")
    return name


def _cidr(text: str) -> str:
    try:
        return str(IPv4Network(text, strict=False))
    except (AddressValueError, NetmaskValueError, ValueError):
        raise ValueError("must be an IPv4 address or range such as 203.0.113.0/24")


def _not_too_big(envs: dict[str, str]) -> dict[str, str]:
    if sum(len(name) + len(value) for name, value in envs.items()) > _MAX_ENVIRONMENT_CHARS:
        raise ValueError(f"must not be larger than {_MAX_ENVIRONMENT_CHARS // 1024} KiB in all")
    return envs


Line = Annotated[str, StringConstraints(max_length=4096), AfterValidator(_no_nul)]
Argument = Annotated[str, StringConstraints(max_length=131_071), AfterValidator(_no_nul)]  # MAX_ARG_STRLEN
EnvName = Annotated[str, StringConstraints(max_length=256), AfterValidator(_no_nul), AfterValidator(_env_name)]
Environment = Annotated[dict[EnvName, Argument], Field(max_length=512), AfterValidator(_not_too_big)]
Label = Annotated[str, StringConstraints(min_length=1, max_length=128), AfterValidator(_no_nul)]
LabelValue = Annotated[str, StringConstraints(max_length=1024), AfterValidator(_no_nul)]
Cidr = Annotated[str, StringConstraints(max_length=64), AfterValidator(_cidr)]
TemplateName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}$")]
Tag = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9._-]{0,63}$")]
Int = Annotated[int, Field(strict=True)]
Seconds = Annotated[int, Field(strict=True, ge=0, le=YEAR_S)]
Dimension = Annotated[int, Field(strict=True, ge=1, le=4096)]
Encoding = Literal["utf-8", "base64"]


class Body(BaseModel):
    """What a caller sends."""

    model_config = ConfigDict(extra="forbid")


class Network(Body):
    """What the sandbox may reach on the internet; private ranges are closed in every mode."""

    egress: Egress | None = Field(default=None, description="Default: allow_list when allow_out is given, else open.")
    allow_out: list[Cidr] = Field(default_factory=list, max_length=256, description="With allow_list: what is open.")
    deny_out: list[Cidr] = Field(default_factory=list, max_length=256, description="With open: what is closed.")

    @model_validator(mode="after")
    def _consistent(self) -> Network:
        if self.egress is None:
            self.egress = Egress.ALLOW_LIST if self.allow_out else Egress.OPEN
        if self.allow_out and self.egress is not Egress.ALLOW_LIST:
            raise ValueError("allow_out counts only with egress allow_list")
        if self.deny_out and self.egress is not Egress.OPEN:
            raise ValueError("deny_out counts only with egress open")
        return self


class Timeouts(Body):
    """When a sandbox ends by itself: the earlier of idle timeout and deadline wins."""

    timeout_sec: Seconds | None = Field(None, description="Idle timeout; 0 = never idle. New sandboxes: 300.")
    idle_action: TimeoutAction | None = None
    ends_in_sec: Annotated[int, Field(strict=True, ge=1, le=YEAR_S)] | None = Field(
        None, description="Deadline, counted from now."
    )
    ends_at: AwareDatetime | None = Field(None, description="Deadline as a moment, RFC 3339 with zone.")
    deadline_action: TimeoutAction | None = None

    @model_validator(mode="after")
    def _one_deadline(self) -> Timeouts:
        if self.ends_in_sec is not None and self.ends_at is not None:
            raise ValueError("give ends_in_sec or ends_at, not both")
        return self


class CreateSandbox(Timeouts):
    """What a new sandbox should be."""

    template: TemplateName = "base"
    vcpus: Int = Field(1, description="Rounded up to 1, 2, 4 or 8.")
    memory_mb: Int = Field(512, description="MiB, rounded up to 256, 512, 1024, 2048, 4096 or 8192.")
    disk_size_mb: Annotated[int, Field(strict=True, ge=0, le=1 << 20)] = Field(
        0,
        description="0, or the size of the template's disk in MiB; another is refused (disk_size_unsupported).",
    )
    metadata: dict[Label, LabelValue] = Field(default_factory=dict, max_length=_MAX_METADATA)
    envs: Environment = Field(default_factory=dict, description="In the environment of every process.")
    network: Network = Field(default_factory=Network)


class ChangeSandbox(Timeouts):
    """New timeouts; what is absent stays. ``ends_at: null`` takes the deadline away."""


class ResumeSandbox(Timeouts):
    """New timeouts for a sandbox that begins to run again; what is absent stays as it was."""


class TakeSnapshot(Body):
    """Which sandbox to keep a moment of, and how."""

    sandbox_id: Annotated[str, StringConstraints(max_length=200)]
    name: Annotated[str, StringConstraints(max_length=200)] | None = Field(
        None, description="1 to 64 of a-z A-Z 0-9 . _ -, beginning with a letter or digit. Default: template-<8 hex>."
    )
    leave_paused: Annotated[bool, Field(strict=True)] = Field(
        False, description="Leave the sandbox paused at that very moment instead of letting it run on."
    )


class ForkSandbox(Timeouts):
    """How many children, and their timeouts; what is absent is as their source has it."""

    count: Annotated[int, Field(strict=True, ge=1, le=MAX_CHILDREN)] = Field(
        1, description="All of them are made, or none."
    )


class RollBackSandbox(Body):
    """Where to put the sandbox back to."""

    snapshot: Annotated[str, StringConstraints(min_length=1, max_length=200)] = Field(
        description="Id (bld-...) or name of a moment that GET /v1/sandboxes/{sandbox_id}/snapshots lists."
    )


class Exec(Body):
    """A command: a program and its arguments, not a line for a shell."""

    cmd: Annotated[Argument, StringConstraints(min_length=1)]
    args: list[Argument] = Field(default_factory=list, max_length=8192)
    envs: Environment = Field(default_factory=dict)
    cwd: Line = ""
    user: Annotated[Line, StringConstraints(max_length=64)] = ""
    timeout_sec: Annotated[int, Field(strict=True, ge=0, le=86_400)] = Field(
        0, description="0 = 30 s; a command out of time is killed, its output kept, `interrupted` says so."
    )
    stdin: str = ""
    stdin_encoding: Encoding = "utf-8"
    background: Annotated[bool, Field(strict=True)] = Field(False, description="Answer 202 at once; ignores timeouts.")
    tag: Tag | None = Field(None, description="Name of a background process.")

    @model_validator(mode="after")
    def _consistent(self) -> Exec:
        if self.background and self.stdin:
            raise ValueError("a background process takes no stdin")
        if self.tag and not self.background:
            raise ValueError("only a background process has a tag")
        return self

    def stdin_bytes(self) -> bytes:
        """Standard input. Raises ValueError for what is not base64."""
        return decoded(self.stdin, self.stdin_encoding)


def decoded(text: str, encoding: Encoding) -> bytes:
    """The bytes behind ``text``. Raises ValueError."""
    if encoding == "utf-8":
        return text.encode()
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:  # binascii.Error is one
        raise ValueError("is not valid base64") from error


class FilePath(Body):
    """A file in the sandbox; a relative path counts from the user's home."""

    path: str
    user: Annotated[Line, StringConstraints(max_length=64)] = ""


class NewKey(Body):
    """A key to be."""

    name: Annotated[str, StringConstraints(max_length=128, strip_whitespace=True), AfterValidator(_no_nul)] = ""


class PhaseOut(BaseModel):
    """How long one step of making the sandbox took on its host."""

    name: str
    ms: float


class NetworkOut(BaseModel):
    """What the sandbox may reach."""

    egress: Egress
    allow_out: list[str]
    deny_out: list[str]


class SandboxOut(BaseModel):
    """A sandbox. Fields without a value are absent."""

    id: str
    status: str
    status_reason: str | None = None
    status_slug: str | None = None
    stalled: Literal["host_disk_full"] | None = Field(
        None,
        description="Its guest stands still at a write until the host's disk has room; then it goes on by itself.",
    )
    template: str
    template_id: str
    build_id: str | None = Field(None, description="Its newest durable moment: where it is paused, or can resume from.")
    vcpus: int
    memory_mb: int
    disk_size_mb: int | None = Field(None, description="Size of the root disk, MiB, when its template says it.")
    timeout_sec: int
    idle_action: TimeoutAction
    ends_at: datetime | None = None
    deadline_action: TimeoutAction
    host_id: str
    host_ip: str | None = None
    created_at: datetime
    started_at: datetime | None = None
    stopped_at: datetime | None = None
    last_active_at: datetime | None = None
    last_updated: datetime
    metadata: dict[str, str]
    network: NetworkOut
    phases: list[PhaseOut] | None = Field(None, description="In the answer of create alone.")


class SandboxesOut(BaseModel):
    """One page of sandboxes."""

    items: list[SandboxOut]
    next_cursor: str | None = None


class ForkOut(BaseModel):
    """The children of a fork."""

    items: list[SandboxOut]


class SnapshotOut(BaseModel):
    """A template. One of type snapshot fixes vCPUs and memory; ``platform``: all teams share it."""

    id: str
    name: str
    type: Literal["base", "snapshot"]
    vcpus: int | None = None
    memory_mb: int | None = None
    size_bytes: int
    created_at: datetime
    platform: bool
    build_id: str | None = None


class MomentOut(BaseModel):
    """One durable moment of a sandbox's history. ``current``: what it is now descends from it."""

    id: str
    parent_id: str | None = None
    sandbox_id: str
    kind: Literal["pause", "snapshot", "fork"]
    name: str | None = Field(None, description="Of the newest template made of it.")
    created_at: datetime
    size_bytes: int = Field(description="What it needs on disk beyond its parents.")
    current: bool


class HistoryOut(BaseModel):
    """A sandbox's moments, oldest first."""

    items: list[MomentOut]


class ExecOut(BaseModel):
    """How a command ended. Both streams are base64 when either is not UTF-8."""

    sandbox_id: str
    cmd: str
    stdout: str
    stderr: str
    exit_code: int
    duration_ms: int
    encoding: Encoding
    truncated: bool = Field(description="Output was cut at 16 MiB a stream.")
    interrupted: str | None = Field(None, description="Why it did not run to its end, e.g. command_timeout.")


class BackgroundOut(BaseModel):
    """A process that runs on."""

    sandbox_id: str
    cmd: str
    pid: int
    tag: str


class ProcessOut(BaseModel):
    """A running process."""

    pid: int
    tag: str | None = None
    cmd: str
    args: list[str]


class ProcessesOut(BaseModel):
    """The running processes."""

    processes: list[ProcessOut]


class KeyOut(BaseModel):
    """An API key, without its secret."""

    id: str
    team_id: str
    name: str
    key_prefix: str
    created_by: str
    created_at: datetime
    last_used: datetime | None = None


class NewKeyOut(KeyOut):
    """A new API key; ``key`` is never shown again."""

    key: str


class TemplateOut(BaseModel):
    """The state of a base template of one size on the host."""

    name: str
    vcpus: int
    memory_mb: int
    status: str
    detail: str


class HostOut(BaseModel):
    """The host that runs this team's sandboxes."""

    id: str
    status: str
    driver: str
    accelerated: bool
    arch: str
    version: str
    cpu_cores: int
    memory_mb: int
    memory_available_mb: int
    disk_mb: int
    disk_free_mb: int
    running: int
    vcpu_choices: list[int]
    memory_mb_choices: list[int]
    templates: list[TemplateOut]


class HealthOut(BaseModel):
    """Whether this control plane serves. ``host`` is online, silent or unknown."""

    status: str
    version: str
    host: str


class ErrorBody(BaseModel):
    """What went wrong."""

    code: str
    message: str


class ErrorOut(BaseModel):
    """The body of every error."""

    error: ErrorBody
