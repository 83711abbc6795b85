"""QEMU's command line and the files its jail holds: pure functions of the machine to be.

A restore must find the devices of the boot, in the same order. It leaves kernel and initramfs out: nothing reads them
after the boot (a guest's reboot ends the machine), and loading them costs 11 ms and 17 MB in every machine.
"""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path, PurePath

from wrenn_sandbox.core.slots import GUEST_MAC
from wrenn_sandbox.image.runtime import Runtime
from wrenn_sandbox.vmm.driver import MachineSpec
from wrenn_sandbox.vmm.launch import FIRST_FD, JailFile

MACHINE = "microvm"
#: Descriptors in the jail.
CONSOLE_FD, STDERR_FD = 1, 2
QMP_FD, TAP_FD, STATE_FD = FIRST_FD, FIRST_FD + 1, FIRST_FD + 2
#: fdset that holds the state to restore from.
STATE_FDSET = 1
_RUNTIME, _KERNEL, _INITRAMFS = "/runtime", "/kernel", "/initramfs"
_MEMORY, _TOOLS, _LAYERS = "/memory", "/tools", "/layers"
#: The overlay that the machine starts with: its name in the jail, and that of its node.
DISK, DISK_NODE = "/disk", "disk"
#: The device that the guest knows as /dev/vda.
DISK_DEVICE = "vda"
#: Translated code of a TCG machine; QEMU's default is 1 GiB a machine.
_TCG_CACHE_MIB = 128
#: As cache=unsafe: the page cache of the host is the disk's write cache; what must last is synced by the agent.
_CACHE = {"direct": False, "no-flush": True}


class Mode(Enum):
    """How a machine starts."""

    BOOT = "boot"
    RESTORE = "restore"


def cmdline(accelerator: str, wanted: str = "") -> str:
    """The guest kernel's command line: what this machine needs, then the words of ``wanted`` that are not there yet.

    The initramfs sets the network up, so there is no ``ip=``.
    """
    clock = "clocksource=kvm-clock" if accelerator == "kvm" else "tsc=reliable"
    words = [*["console=ttyS0", "reboot=t", "panic=-1", "quiet", "loglevel=1", "random.trust_cpu=1"], clock]
    return " ".join([*words, *(word for word in wanted.split() if word not in words)])


def jail_files(spec: MachineSpec, mode: Mode) -> tuple[JailFile, ...]:
    """All that the machine may see of the host."""
    files = spec.files
    boot_only = () if mode is Mode.RESTORE else (JailFile(files.kernel, _KERNEL), JailFile(files.initramfs, _INITRAMFS))
    return (
        JailFile(files.runtime, _RUNTIME),
        *boot_only,
        JailFile(files.memory, _MEMORY, writable=mode is Mode.BOOT),
        JailFile(files.tools, _TOOLS),
        *(JailFile(path, f"{_LAYERS}/{number}") for number, path in enumerate(files.backing)),
        JailFile(files.disk, DISK, writable=True),
    )


def build(spec: MachineSpec, mode: Mode, tsc_khz: int | None = None) -> tuple[str, ...]:
    """The command line of a jailed QEMU. ``tsc_khz`` is told to a guest that boots under TCG (see ``tsc``)."""
    return (
        *Runtime(spec.files.runtime).command(PurePath(_RUNTIME)),
        *("-name", f"{spec.name},debug-threads=on"),
        *_machine(spec, mode),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-chardev", f"socket,id=qmp,fd={QMP_FD},server=on,wait=off", "-mon", "chardev=qmp,mode=control"),
        *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
        *_disks(spec),
        *_network(spec),
        *_start(spec, mode, tsc_khz),
    )


def _machine(spec: MachineSpec, mode: Mode) -> tuple[str, ...]:
    platform, shape = spec.platform, spec.shape
    accelerator = f"tcg,tb-size={_TCG_CACHE_MIB}" if platform.accelerator == "tcg" else platform.accelerator
    # share=on: the file is the memory, and so its snapshot. share=off: private copy-on-write of a file root owns.
    sharing = "share=off,readonly=on,rom=off" if mode is Mode.RESTORE else "share=on"
    return (
        *("-M", f"{platform.machine},memory-backend=ram0,mem-merge=off,dump-guest-core=off,suppress-vmdesc=on"),
        *("-accel", accelerator, "-cpu", platform.cpu_model, "-smp", str(shape.vcpus), "-m", f"{shape.memory_mib}M"),
        *("-object", f"memory-backend-file,id=ram0,size={shape.memory_mib}M,mem-path={_MEMORY},{sharing}"),
        *("-global", "migration.send-configuration=off"),
    )


def _disks(spec: MachineSpec) -> tuple[str, ...]:
    nodes: list[dict[str, object]] = []
    below: str | None = None
    for number, path in reversed(tuple(enumerate(spec.files.backing))):
        name = f"layer{number}"
        nodes.append(_file(f"{name}-file", f"{_LAYERS}/{number}", read_only=True))
        node: dict[str, object] = {"node-name": name, "file": f"{name}-file", "read-only": True, "cache": _CACHE}
        nodes.append({"driver": "qcow2", "backing": below, **node} if is_qcow2(path) else {"driver": "raw", **node})
        below = name
    nodes.append(overlay_node(DISK_NODE, DISK, below))
    nodes.append(_file("tools-file", _TOOLS, read_only=True))
    nodes.append({"driver": "raw", "node-name": "tools", "file": "tools-file", "read-only": True, "cache": _CACHE})
    blockdevs = [word for node in nodes for word in ("-blockdev", json.dumps(node))]
    drives = ((DISK_DEVICE, DISK_NODE), ("vdb", "tools"))
    devices = [word for name, node in drives for word in ("-device", f"virtio-blk-device,id={name},drive={node}")]
    return (*blockdevs, *devices)


def overlay_node(name: str, path: str, backing: str | None) -> dict[str, object]:
    """A writable overlay with its file, for the command line and for ``blockdev-add``."""
    file = _file(f"{name}-file", path, read_only=False)
    above = {"driver": "qcow2", "node-name": name, "backing": backing}
    return {**above, "file": file, "discard": "unmap", "cache": _CACHE}


def _file(node_name: str, path: str, *, read_only: bool) -> dict[str, object]:
    node: dict[str, object] = {"driver": "file", "node-name": node_name, "filename": path, "cache": _CACHE}
    return {**node, "read-only": True} if read_only else {**node, "discard": "unmap"}


def is_qcow2(path: Path) -> bool:
    """Formats follow from our own file names, never from content: a guest could write a header into a raw disk."""
    return path.suffix == ".qcow2"


def _network(spec: MachineSpec) -> tuple[str, ...]:
    if spec.tap_fd is None:
        return ()
    return (
        *("-netdev", f"tap,id=net0,fd={TAP_FD}"),
        *("-device", f"virtio-net-device,id=eth0,netdev=net0,mac={GUEST_MAC}"),
    )


def _start(spec: MachineSpec, mode: Mode, tsc_khz: int | None) -> tuple[str, ...]:
    if mode is Mode.RESTORE:
        return ("-add-fd", f"fd={STATE_FD},set={STATE_FDSET}", "-incoming", "defer")
    words = spec.platform.kernel_cmdline
    if tsc_khz is not None and spec.platform.accelerator == "tcg":
        words += f" tsc_early_khz={tsc_khz}"
    return ("-kernel", _KERNEL, "-initrd", _INITRAMFS, "-append", words)
