from pathlib import Path, PurePath

import pytest

from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.image.runtime import Parts, Runtime, parse_ldd, parse_version

LDD = """\
\tlinux-vdso.so.1 (0x00007ffd)
\tlibpixman-1.so.0 => /lib/x86_64-linux-gnu/libpixman-1.so.0 (0x0000)
\t/lib64/ld-linux-x86-64.so.2 (0x0000)
"""


@pytest.mark.parametrize(
    ("output", "version"),
    [
        ("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)", "10.0.2"),
        ("QEMU emulator version 9.0.0", "9.0.0"),
    ],
)
def test_versions_are_read(output: str, version: str) -> None:
    assert parse_version(output) == version


@pytest.mark.parametrize("output", ["QEMU emulator version 7.2.9 (Debian)", "QEMU emulator version 8.2.1", "what"])
def test_an_old_qemu_is_refused_with_what_to_do(output: str) -> None:
    with pytest.raises(Unavailable) as caught:
        parse_version(output)
    assert caught.value.slug == "qemu_too_old"
    assert "backports" in caught.value.message or "version" in caught.value.message


def test_libraries_and_loader_are_told_apart() -> None:
    assert parse_ldd(LDD) == ((Path("/lib/x86_64-linux-gnu/libpixman-1.so.0"),), Path("/lib64/ld-linux-x86-64.so.2"))


@pytest.mark.parametrize("output", ["\tlibgone.so => not found\n", "\tstatically linked\n"])
def test_an_incomplete_or_static_qemu_is_an_error(output: str) -> None:
    with pytest.raises(Unavailable) as caught:
        parse_ldd(output)
    assert caught.value.slug == "tool_missing"


def test_commands_are_the_same_inside_a_jail() -> None:
    runtime = Runtime(Path("/images/runtimes/abc"))
    outside, inside = runtime.command(), runtime.command(PurePath("/runtime"))
    assert outside == tuple(word.replace("/runtime/", "/images/runtimes/abc/") for word in inside)
    assert inside[0] == str(runtime.argv0(PurePath("/runtime"))) == "/runtime/lib/ld-linux-x86-64.so.2"
    assert inside[-2:] == ("-L", "/runtime/share/qemu")
    assert runtime.image_tool()[-1] == "/images/runtimes/abc/bin/qemu-img"
    assert runtime.storage_daemon()[-1] == "/images/runtimes/abc/bin/qemu-storage-daemon"


def test_a_changed_file_is_another_runtime(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("qemu", "lib", "ld", "rom")]
    for path in files:
        path.write_text("1")
    parts = Parts("10.0.2", (files[0],), (files[1],), files[2], (files[3],))
    before = parts.identity()
    assert parts.identity() == before
    files[1].write_text("22")
    assert parts.identity() != before
