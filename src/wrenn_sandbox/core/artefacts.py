"""The artefacts a machine is made of, named by content hash, and the record of a build that needs them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from wrenn_sandbox.core.spec import Shape

MANIFEST_VERSION = 2
#: ``Manifest.memory_header`` of a build whose ``memory`` is the whole RAM, page by page.
FLAT = ""


@dataclass(frozen=True, slots=True)
class ArtefactSet:
    """One consistent set of guest artefacts: content hashes (SHA-256, first 32 hex digits) and the kernel's release."""

    runtime: str
    kernel: str
    kernel_release: str
    initramfs: str
    tools: str
    rootfs: str


@dataclass(frozen=True, slots=True)
class Platform:
    """The virtual hardware a memory snapshot is bound to. ``accelerator`` is ``tcg`` or ``kvm``."""

    driver: str
    accelerator: str
    machine: str
    cpu_model: str
    kernel_cmdline: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a build is and what it needs to run. Paths are relative to the build's directory, ids plain UUIDs.

    ``disk_chain`` names the builds whose ``disk`` lie below this one's, nearest first, down to the base template's;
    below that is the root file system of ``artefacts``. ``hashes`` has the SHA-256 of each of its files, in hex.
    """

    build_id: str
    template: str
    shape: Shape
    artefacts: ArtefactSet
    platform: Platform
    created_at_unix_s: float
    disk: str = "disk.qcow2"
    memory: str = "memory"
    state: str = "state"
    memory_header: str = FLAT
    parent: str = ""  # the build it was restored from; empty for a base template
    disk_chain: tuple[str, ...] = ()
    sandbox_id: str = ""  # whose moment this was, as sb-<uuid>
    default_user: str = ""
    default_workdir: str = ""
    access_token: str = field(default="", repr=False)  # what envd in this memory lets its next token be set with
    envs: dict[str, str] = field(default_factory=dict, repr=False)
    hashes: dict[str, str] = field(default_factory=dict)
    tsc_khz: int = 0  # of the host under TCG, whose guests count by it; 0 = does not matter
    envd_version: str = ""
    version: int = MANIFEST_VERSION

    def to_json(self) -> dict[str, object]:
        """A form for json.dumps."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, object]) -> Manifest:
        """Read what ``to_json`` gave; raises KeyError or TypeError on anything else."""
        fields = dict(data)
        shape, artefacts, platform = fields.pop("shape"), fields.pop("artefacts"), fields.pop("platform")
        if not (isinstance(shape, dict) and isinstance(artefacts, dict) and isinstance(platform, dict)):
            raise TypeError("shape, artefacts and platform must be objects")
        chain = fields.pop("disk_chain", ())
        if not isinstance(chain, list | tuple):
            raise TypeError("disk_chain must be a list")
        return cls(
            shape=Shape(**shape),
            artefacts=ArtefactSet(**artefacts),
            platform=Platform(**platform),
            disk_chain=tuple(chain),
            **fields,  # type: ignore[arg-type]
        )
