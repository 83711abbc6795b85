"""What a host agent is started with: flags, or ``WRENN_<FLAG>`` in the environment."""

from __future__ import annotations

from enum import Enum
from ipaddress import IPv4Network
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict

from wrenn_sandbox.core.placement import Rules
from wrenn_sandbox.core.slots import DEFAULT_POOLS, AddressPools


class DriverChoice(Enum):
    """Which VMM; ``auto`` is QEMU."""

    AUTO = "auto"
    QEMU = "qemu"
    FAKE = "fake"


class AcceleratorChoice(Enum):
    """Which accelerator; ``auto`` is what a probe found to boot a guest."""

    AUTO = "auto"
    TCG = "tcg"
    KVM = "kvm"


class Settings(BaseSettings):
    """All options. Sizes end in their unit."""

    model_config = SettingsConfigDict(
        env_prefix="WRENN_", cli_kebab_case=True, cli_prog_name="python -m wrenn_sandbox.hostagent", extra="ignore"
    )

    data_dir: Path = Field(Path("/var/lib/wrenn"), description="Where this agent keeps its machines.")
    images_dir: Path = Field(Path("/var/lib/wrenn/images"), description="Guest artefacts and base templates.")
    listen: str = Field("127.0.0.1:50051", description="HOST:PORT; port 0 takes any free one.")
    driver: DriverChoice = Field(DriverChoice.AUTO, description="auto, qemu or fake.")
    accelerator: AcceleratorChoice = Field(AcceleratorChoice.AUTO, description="auto, tcg or kvm.")
    token_file: Path = Field(description="The bearer token every request must carry.")
    ready_file: Path | None = Field(None, description="Written as JSON once the agent listens.")
    tag: str = Field("wrenn", pattern=r"^[a-z][a-z0-9]{0,7}$", description="Keeps two agents on a machine apart.")
    log_level: str = Field("info", description="debug, info, warning or error.")
    max_sandboxes: int = Field(1000, ge=1, description="Sandboxes at once.")
    memory_factor: float = Field(0.5, gt=0, le=1, description="Part of a guest's memory that is reserved.")
    min_available_fraction: float = Field(0.10, ge=0, lt=1, description="Part of memory that stays the host's.")
    min_disk_mib: int = Field(5 * 1024, ge=0, description="Free disk below which nothing new is made.")
    min_disk_fraction: float = Field(0.10, ge=0, lt=1, description="The same, as a part of the disk.")
    parallel_starts: int = Field(0, ge=0, description="Sandboxes restored at the same time; 0 is one a core.")
    warm_slots: int = Field(4, ge=0, le=256, description="Network slots kept ready.")
    host_pool: IPv4Network = Field(DEFAULT_POOLS.hosts, description="Addresses of sandboxes on this host.")
    link_pool: IPv4Network = Field(DEFAULT_POOLS.links, description="Addresses between host and namespaces.")

    @property
    def rules(self) -> Rules:
        """The capacity rules."""
        return Rules(
            memory_factor=self.memory_factor,
            min_available_fraction=self.min_available_fraction,
            min_disk_mib=self.min_disk_mib,
            min_disk_fraction=self.min_disk_fraction,
            max_sandboxes=self.max_sandboxes,
        )

    @property
    def pools(self) -> AddressPools:
        """Where addresses come from."""
        return AddressPools(hosts=self.host_pool, links=self.link_pool)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to listen on; raises ValueError."""
        host, _, port = self.listen.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"--listen takes HOST:PORT, not {self.listen!r}")
        return host.strip("[]"), int(port)


def parse(arguments: list[str]) -> Settings:
    """Settings from a command line and the environment; exits with a message when they are wrong."""
    source = CliSettingsSource[object](Settings, cli_parse_args=arguments)
    return Settings(_cli_settings_source=source)  # type: ignore[call-arg]
