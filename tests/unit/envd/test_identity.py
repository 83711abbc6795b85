from __future__ import annotations

import stat
from pathlib import Path

import pytest

from wrenn_sandbox.core.errors import Invalid
from wrenn_sandbox.envd import identity


def test_environment_tells_every_fact_under_both_names() -> None:
    assert identity.environment("sb-1", "tpl-1") == {
        "WRENN_SANDBOX": "true",
        "WRENN_SANDBOX_ID": "sb-1",
        "WRENN_TEMPLATE_ID": "tpl-1",
        "E2B_SANDBOX": "true",
        "E2B_SANDBOX_ID": "sb-1",
        "E2B_TEMPLATE_ID": "tpl-1",
    }
    assert "WRENN_TEMPLATE_ID" not in identity.environment("sb-1", "")


def test_files_hold_the_same(tmp_path: Path) -> None:
    identity.write_files("sb-1", "tpl-1", tmp_path)
    identity.write_files("sb-2", "tpl-1", tmp_path)
    found = {p.relative_to(tmp_path).as_posix(): p.read_text() for p in tmp_path.rglob("*") if p.is_file()}
    assert found == {
        "wrenn/.WRENN_SANDBOX": "true",
        "wrenn/.WRENN_SANDBOX_ID": "sb-2",
        "wrenn/.WRENN_TEMPLATE_ID": "tpl-1",
        "e2b/.E2B_SANDBOX": "true",
        "e2b/.E2B_SANDBOX_ID": "sb-2",
        "e2b/.E2B_TEMPLATE_ID": "tpl-1",
    }


def test_machine_id_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "machine-id"
    for _ in range(2):
        assert identity.set_machine_id("a" * 32, path)
        assert path.read_text() == "a" * 32 + "\n"
        assert stat.S_IMODE(path.stat().st_mode) == 0o444


def test_machine_id_needs_a_place(tmp_path: Path) -> None:
    assert not identity.set_machine_id("a" * 32, tmp_path / "missing" / "machine-id")


@pytest.mark.parametrize("text", ["", "a" * 31, "a" * 33, "A" * 32, "g" * 32, "a" * 32 + "\n"])
def test_bad_machine_ids(text: str) -> None:
    with pytest.raises(Invalid):
        identity.check_machine_id(text)


@pytest.mark.parametrize("text", ["", "-a", "a-", "a.b", "a b", "x" * 64, "a\n"])
def test_bad_hostnames(text: str) -> None:
    with pytest.raises(Invalid):
        identity.check_hostname(text)


def test_good_names() -> None:
    identity.check_machine_id("0123456789abcdef" * 2)
    for name in ("a", "sb-1", "x" * 63):
        identity.check_hostname(name)


def test_hosts_has_one_line_for_the_name() -> None:
    once = identity.hosts_with("127.0.0.1 localhost\n127.0.1.1 old\n\n::1 localhost\n", "new")
    assert once == "127.0.0.1 localhost\n\n::1 localhost\n127.0.1.1 new\n"
    assert identity.hosts_with(once, "new") == once
    assert identity.hosts_with("", "a") == "127.0.1.1 a\n"


def test_hostname_is_resolvable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    monkeypatch.setattr(identity.socket, "sethostname", names.append)
    identity.set_hostname("box", tmp_path)
    assert names == ["box"]
    assert (tmp_path / "hostname").read_text() == "box\n"
    assert "127.0.1.1 box\n" in (tmp_path / "hosts").read_text()
    identity.set_hostname("box", tmp_path / "no-such-etc")
    assert names == ["box", "box"]


def test_replace_does_not_follow_a_link(tmp_path: Path) -> None:
    victim, link = tmp_path / "victim", tmp_path / "link"
    victim.write_text("kept")
    link.symlink_to(victim)
    identity.replace(link, "new", 0o644)
    assert victim.read_text() == "kept"
    assert not link.is_symlink()
