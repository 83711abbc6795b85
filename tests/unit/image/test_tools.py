import re
from pathlib import Path

import pytest

from wrenn_sandbox.core import slots
from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.image import tools
from wrenn_sandbox.image.recipe import Sources

SCRIPT = (Sources.of_checkout().guest / "wrenn-init.sh").read_text()


def test_wrappers_need_nothing_of_the_root_file_system() -> None:
    for name, text in tools.wrappers().items():
        outside = re.findall(r"(?<![\w/])/[\w./-]+", text)
        assert all(path.startswith("/run/wrenn/") for path in outside), name
        assert text.startswith("#!/run/wrenn/tools/bin/busybox sh\n")
        assert "--inhibit-cache" in text  # the root file system's ld.so.cache names other libraries


def test_python_finds_its_own_library_and_site() -> None:
    text = tools.wrappers()["bin/python"]
    assert "PYTHONHOME=/run/wrenn/tools/usr" in text
    assert "PYTHONPATH=/run/wrenn/tools/site" in text


def test_only_the_parts_envd_needs_go_along() -> None:
    package = Sources.of_checkout().package
    names = {path.relative_to(package).parts[0] for path in tools.python_files(package)}
    assert names == {"__init__.py", "core", "rpc", "observe", "envd"}


def test_any_change_of_our_sources_is_another_disk(tmp_path: Path) -> None:
    guest, package = tmp_path / "guest", tmp_path / "src" / "wrenn_sandbox"
    for part in ("core", "rpc", "observe", "envd"):
        (package / part).mkdir(parents=True)
        (package / part / "__init__.py").write_text("")
    guest.mkdir()
    (package / "__init__.py").write_text("")
    for name in ("wrenn-init.sh", "exec-shim.c"):
        (guest / name).write_text(name)
    sources = Sources(guest=guest, lock=tmp_path / "lock", package=package)
    keys = [tools.recipe(sources, tmp_path, "base").key, tools.recipe(sources, tmp_path, "other").key]
    for path in (package / "envd" / "__init__.py", guest / "wrenn-init.sh", guest / "exec-shim.c"):
        path.write_text("changed")
        keys.append(tools.recipe(sources, tmp_path, "base").key)
    (package / "envd" / "more.py").write_text("")
    keys.append(tools.recipe(sources, tmp_path, "base").key)
    assert len(set(keys)) == len(keys)


def test_needed_libraries_are_those_below_the_tree() -> None:
    listed = (
        "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibz.so.1 => /d/usr/lib/x86_64-linux-gnu/libz.so.1 (0x1)\n"
        "\t/d/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 (0x2)\n"
    )
    assert tools.needed(listed, Path("/d/usr/lib/x86_64-linux-gnu")) == ["libz.so.1"]


def test_a_library_in_no_package_is_an_error() -> None:
    with pytest.raises(Unavailable, match=r"libnone\.so\.1"):
        tools.needed("\tlibnone.so.1 => not found\n", Path("/d"))


@pytest.mark.parametrize("uv", [None, Path("/venv/bin/uv")])
def test_wheels_are_hashed_binary_and_for_the_guests_python(uv: Path | None) -> None:
    words = " ".join(tools.installer(uv))
    assert "--require-hashes" in words
    assert "--only-binary :all:" in words
    assert "--python-version 3.11" in words
    assert "manylinux_2_28" in words


def test_wrenn_init_and_the_slots_agree_on_addresses() -> None:
    for text in (
        f"GUEST_IP={slots.GUEST_IP}",
        f"GATEWAY_IP={slots.GATEWAY_IP}",
        f"PREFIX_LENGTH={slots.GUEST_PREFIX_LENGTH}",
        f"GATEWAY_MAC={slots.GATEWAY_MAC}",
        f"--port {slots.ENVD_PORT}",
    ):
        assert text in SCRIPT


def test_the_clock_daemon_starts_before_envd_takes_over() -> None:
    assert SCRIPT.index("\nclock\n") < SCRIPT.index("\nexec $T/bin/tini -- ")
