"""A machine to be, for tests that start none."""

from __future__ import annotations

from pathlib import Path

from wrenn_sandbox.core.artefacts import Platform
from wrenn_sandbox.core.spec import Shape
from wrenn_sandbox.vmm.driver import MachineFiles, MachineSpec

SPEC = MachineSpec(
    name="sb-1",
    shape=Shape(vcpus=2, memory_mib=1024),
    platform=Platform("qemu", "tcg", "microvm", "max", "console=ttyS0"),
    files=MachineFiles(
        runtime=Path("/i/runtimes/a"),
        kernel=Path("/i/kernels/b/vmlinuz"),
        initramfs=Path("/i/initramfs/c/initramfs"),
        tools=Path("/i/tools/d/tools.squashfs"),
        disk=Path("/d/sb-1/disk.qcow2"),
        backing=(Path("/b/1/disk.qcow2"), Path("/i/rootfs/e/rootfs.ext4")),
        memory=Path("/b/1/memory"),
    ),
    run_dir=Path("/d/sb-1/vmm"),
    uid=1_900_000_001,
    gid=1_900_000_001,
    tap_fd=9,
    host_ip="10.11.0.1",
)
