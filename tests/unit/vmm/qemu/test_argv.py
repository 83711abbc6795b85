from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.vmm.specs import SPEC
from wrenn_sandbox.image.runtime import Runtime
from wrenn_sandbox.vmm.driver import MachineSpec
from wrenn_sandbox.vmm.launch import JailFile
from wrenn_sandbox.vmm.qemu import argv
from wrenn_sandbox.vmm.qemu.argv import Mode

_CACHE = {"direct": False, "no-flush": True}

RESTORE = [
    "-name", "sb-1,debug-threads=on",
    "-M", "microvm,memory-backend=ram0,mem-merge=off,dump-guest-core=off,suppress-vmdesc=on",
    "-accel", "tcg,tb-size=128", "-cpu", "max", "-smp", "2", "-m", "1024M",
    "-object", "memory-backend-file,id=ram0,size=1024M,mem-path=/memory,share=off,readonly=on,rom=off",
    "-global", "migration.send-configuration=off",
    "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
    "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    "-chardev", "socket,id=qmp,fd=4,server=on,wait=off", "-mon", "chardev=qmp,mode=control",
    "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
    "-blockdev", {"driver": "file", "node-name": "layer1-file", "filename": "/layers/1", "cache": _CACHE,
                  "read-only": True},
    "-blockdev", {"driver": "raw", "node-name": "layer1", "file": "layer1-file", "read-only": True, "cache": _CACHE},
    "-blockdev", {"driver": "file", "node-name": "layer0-file", "filename": "/layers/0", "cache": _CACHE,
                  "read-only": True},
    "-blockdev", {"driver": "qcow2", "backing": "layer1", "node-name": "layer0", "file": "layer0-file",
                  "read-only": True, "cache": _CACHE},
    "-blockdev", {"driver": "qcow2", "node-name": "disk", "backing": "layer0", "discard": "unmap", "cache": _CACHE,
                  "file": {"driver": "file", "node-name": "disk-file", "filename": "/disk", "cache": _CACHE,
                           "discard": "unmap"}},
    "-blockdev", {"driver": "file", "node-name": "tools-file", "filename": "/tools", "cache": _CACHE,
                  "read-only": True},
    "-blockdev", {"driver": "raw", "node-name": "tools", "file": "tools-file", "read-only": True, "cache": _CACHE},
    "-device", "virtio-blk-device,id=vda,drive=disk", "-device", "virtio-blk-device,id=vdb,drive=tools",
    "-netdev", "tap,id=net0,fd=5", "-device", "virtio-net-device,id=eth0,netdev=net0,mac=02:fc:00:00:00:05",
    "-add-fd", "fd=6,set=1", "-incoming", "defer",
]  # fmt: skip


def _arguments(spec: MachineSpec, mode: Mode, tsc_khz: int | None = None) -> list[object]:
    words = argv.build(spec, mode, tsc_khz)
    command = Runtime(spec.files.runtime).command(Path("/runtime"))
    assert words[: len(command)] == command
    return [json.loads(word) if word.startswith("{") else word for word in words[len(command) :]]


def test_the_command_line_of_a_restore() -> None:
    assert _arguments(SPEC, Mode.RESTORE) == RESTORE


def test_a_boot_differs_in_memory_and_start_alone() -> None:
    shared = "memory-backend-file,id=ram0,size=1024M,mem-path=/memory,share=on"
    expected = [shared if str(word).startswith("memory-backend-file") else word for word in RESTORE[:-4]]
    kernel = ["-kernel", "/kernel", "-initrd", "/initramfs", "-append", "console=ttyS0 tsc_early_khz=2596134"]
    assert _arguments(SPEC, Mode.BOOT, tsc_khz=2_596_134) == expected + kernel


def test_only_tcg_guests_are_told_a_tsc_rate() -> None:
    kvm = replace(SPEC, platform=replace(SPEC.platform, accelerator="kvm", cpu_model="EPYC-Rome,enforce"))
    words = _arguments(kvm, Mode.BOOT, tsc_khz=2_596_134)
    assert words[-1] == "console=ttyS0"
    assert words[4:8] == ["-accel", "kvm", "-cpu", "EPYC-Rome,enforce"]


def test_no_tap_is_no_network_device() -> None:
    assert [w for w in _arguments(replace(SPEC, tap_fd=None), Mode.RESTORE) if "net" in str(w)] == []


def test_the_jail_of_a_restore_holds_what_it_reads_and_one_file_to_write() -> None:
    assert argv.jail_files(SPEC, Mode.RESTORE) == (
        JailFile(Path("/i/runtimes/a"), "/runtime"),
        JailFile(Path("/b/1/memory"), "/memory"),
        JailFile(Path("/i/tools/d/tools.squashfs"), "/tools"),
        JailFile(Path("/b/1/disk.qcow2"), "/layers/0"),
        JailFile(Path("/i/rootfs/e/rootfs.ext4"), "/layers/1"),
        JailFile(Path("/d/sb-1/disk.qcow2"), "/disk", writable=True),
    )


def test_the_jail_of_a_boot_adds_kernel_and_a_memory_to_write() -> None:
    more = set(argv.jail_files(SPEC, Mode.BOOT)) - set(argv.jail_files(SPEC, Mode.RESTORE))
    assert more == {
        JailFile(Path("/i/kernels/b/vmlinuz"), "/kernel"),
        JailFile(Path("/i/initramfs/c/initramfs"), "/initramfs"),
        JailFile(Path("/b/1/memory"), "/memory", writable=True),
    }


@pytest.mark.parametrize(("accelerator", "clock"), [("tcg", "tsc=reliable"), ("kvm", "clocksource=kvm-clock")])
def test_the_kernel_command_line(accelerator: str, clock: str) -> None:
    words = argv.cmdline(accelerator, "quiet root=/dev/vda init=/x").split()
    assert clock in words
    assert words.count("quiet") == 1
    assert words[-2:] == ["root=/dev/vda", "init=/x"]
    assert argv.cmdline(accelerator) in argv.cmdline(accelerator, "more")
