import threading
from pathlib import Path

import pytest

from wrenn_sandbox.core.slots import LAST_SLOT, slot
from wrenn_sandbox.net import namespace
from wrenn_sandbox.net.namespace import is_slot_link, names, run_in_thread, valid_tag


@pytest.mark.parametrize("tag", ["wrenn", "a", "t1234567"])
def test_good_tags(tag: str) -> None:
    assert valid_tag(tag)
    the_slot = slot(LAST_SLOT, tag=tag)
    assert the_slot.veth == f"{tag}-v{LAST_SLOT}", "the number is not cut off"
    assert is_slot_link(the_slot.veth)


@pytest.mark.parametrize("tag", ["", "t12345678", "1abc", "a-b", "A", "a b", 'a"', "a\n"])
def test_bad_tags(tag: str) -> None:
    assert not valid_tag(tag)


@pytest.mark.parametrize("name", ["eth0", "veth12", "docker0", "wrenn-v", "wrenn-vx", "br-v1x", "tailscale-v1"])
def test_other_links_are_not_taken_for_slots(name: str) -> None:
    assert not is_slot_link(name)


def test_only_the_tags_own_names_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespace, "NETNS_DIRECTORY", tmp_path)
    for name in ("wrenn-ns-1", "wrenn-ns-12", "wrenn2-ns-1", "wrenn-ns-x", "wrenn-ns-", "xwrenn-ns-1"):
        (tmp_path / name).touch()
    assert names("wrenn") == ["wrenn-ns-1", "wrenn-ns-12"]
    monkeypatch.setattr(namespace, "NETNS_DIRECTORY", tmp_path / "none")
    assert names("wrenn") == []


def test_a_name_that_exists_is_somebody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespace, "NETNS_DIRECTORY", tmp_path)
    (tmp_path / "wrenn-ns-3").touch()
    with pytest.raises(namespace.SlotTaken):
        namespace.create(slot(3))
    assert (tmp_path / "wrenn-ns-3").exists()


def test_work_runs_in_a_thread_that_has_ended() -> None:
    before = threading.active_count()
    assert run_in_thread(threading.get_ident) != threading.get_ident()
    assert threading.active_count() == before


def test_errors_come_through_the_thread() -> None:
    def fail() -> None:
        raise OSError(5, "no")

    with pytest.raises(OSError, match="no"):
        run_in_thread(fail)
