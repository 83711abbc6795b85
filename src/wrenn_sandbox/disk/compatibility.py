"""Whether a build can run on this host as it is now, and if not, why."""

from __future__ import annotations

from wrenn_sandbox.core.artefacts import Manifest, Platform
from wrenn_sandbox.core.errors import Conflict
from wrenn_sandbox.image.catalog import Catalog

#: The driver without a machine: of all artefacts it looks at the root file system alone.
_FAKE = "fake"
#: Parts of a million by which a clock may be off and chronyd still corrects it (adjtimex(2)). What two measurements of
#: one host differ by is far less.
TSC_TOLERANCE_PPM = 500


def require_runnable(manifest: Manifest, catalog: Catalog, platform: Platform, tsc_khz: int) -> None:
    """Raise Conflict (``build_incompatible``) with everything that is in the way.

    ``platform`` is what the host's driver gives for the command line of this very build, so that the words which only
    concern the guest may change between versions. ``tsc_khz`` 0 is unknown.
    """
    reasons = [*_missing(manifest, catalog), *_differing(manifest.platform, platform)]
    if manifest.platform.accelerator == "tcg" and _rates_differ(manifest.tsc_khz, tsc_khz):
        reasons.append(f"its guest counts time by a TSC of {manifest.tsc_khz} kHz, and this host has {tsc_khz} kHz")
    if reasons:
        raise Conflict(
            f"The build {manifest.build_id} cannot run on this host: {'; '.join(reasons)}. Use the host that made it, "
            "or put back what is missing.",
            slug="build_incompatible",
        )


def _missing(manifest: Manifest, catalog: Catalog) -> list[str]:
    artefacts = manifest.artefacts
    wanted = {"root file system": (artefacts.rootfs, catalog.rootfs(artefacts.rootfs))}
    if manifest.platform.driver != _FAKE:
        wanted |= {
            "runtime": (artefacts.runtime, catalog.runtime(artefacts.runtime)),
            "kernel": (artefacts.kernel, catalog.kernel(artefacts.kernel)),
            "initramfs": (artefacts.initramfs, catalog.initramfs(artefacts.initramfs)),
            "tools disk": (artefacts.tools, catalog.tools(artefacts.tools)),
        }
    return [f"the {what} {digest} is not there" for what, (digest, path) in wanted.items() if not path.exists()]


def _differing(made_with: Platform, here: Platform) -> list[str]:
    return [
        f"it was made with {what} {wanted!r}, and this host has {found!r}"
        for what, wanted, found in (
            ("driver", made_with.driver, here.driver),
            ("accelerator", made_with.accelerator, here.accelerator),
            ("machine", made_with.machine, here.machine),
            ("CPU model", made_with.cpu_model, here.cpu_model),
            ("kernel command line", made_with.kernel_cmdline, here.kernel_cmdline),
        )
        if wanted != found
    ]


def _rates_differ(one_khz: int, other_khz: int) -> bool:
    known = one_khz > 0 and other_khz > 0
    return known and abs(one_khz - other_khz) * 1_000_000 > TSC_TOLERANCE_PPM * min(one_khz, other_khz)
