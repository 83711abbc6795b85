import os
from pathlib import Path

import pytest

from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.image import command


def test_a_missing_program_names_its_debian_package() -> None:
    error = command.missing_tool("mksquashfs")
    assert error.slug == "tool_missing"
    assert "squashfs-tools" in error.message


def test_programs_are_found_in_the_systems_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_SEARCH_PATH", f"{tmp_path / 'none'}:{tmp_path}")
    (tmp_path / "tool").write_text("")
    with pytest.raises(Unavailable):  # there, but not executable
        command.find_tool("tool")
    (tmp_path / "tool").chmod(0o755)
    assert command.find_tool("tool") == tmp_path / "tool"


def test_every_tool_a_recipe_starts_has_its_package_named() -> None:
    assert {"mmdebstrap", "mksquashfs", "mke2fs", "gcc", "qemu-img"} <= set(command.PACKAGE_OF)
    assert os.sep not in "".join(command.PACKAGE_OF)
