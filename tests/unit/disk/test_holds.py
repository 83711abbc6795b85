from __future__ import annotations

from pathlib import Path
from uuid import UUID, uuid4

import pytest

from wrenn_sandbox.core.errors import Invalid, Unavailable
from wrenn_sandbox.disk.holds import Holds, checked_holder

SANDBOX, TEMPLATE = f"sb-{uuid4()}", f"tpl-{uuid4()}"
ONE, TWO = UUID(int=1), UUID(int=2)


@pytest.fixture
def holds(tmp_path: Path) -> Holds:
    return Holds(tmp_path / "holds")


def test_nobody_holds_anything_at_first(holds: Holds) -> None:
    assert holds.all() == {}


def test_a_holder_holds_one_build_until_it_drops_it(holds: Holds, tmp_path: Path) -> None:
    holds.put(SANDBOX, ONE)
    holds.put(TEMPLATE, ONE)
    holds.put(SANDBOX, TWO)
    holds.put(SANDBOX, TWO)
    assert Holds(tmp_path / "holds").all() == {SANDBOX: TWO, TEMPLATE: ONE}
    holds.drop(SANDBOX)
    holds.drop(SANDBOX)
    assert holds.all() == {TEMPLATE: ONE}


def test_the_file_is_a_uuid_that_an_administrator_can_read(holds: Holds, tmp_path: Path) -> None:
    holds.put(SANDBOX, ONE)
    assert (tmp_path / "holds" / SANDBOX).read_text() == f"{ONE}\n"


def test_a_hold_that_cannot_be_read_is_no_hold_that_is_not_there(holds: Holds, tmp_path: Path) -> None:
    holds.put(SANDBOX, ONE)
    (tmp_path / "holds" / SANDBOX).write_text("")
    with pytest.raises(Unavailable) as caught:
        holds.all()
    assert caught.value.slug == "hold_broken"
    assert SANDBOX in caught.value.message


def test_one_that_cannot_be_read_hides_no_other(holds: Holds, tmp_path: Path) -> None:
    holds.put(SANDBOX, ONE)
    holds.put(TEMPLATE, TWO)
    (tmp_path / "holds" / SANDBOX).write_text("")
    (tmp_path / "holds" / f"sb-{uuid4()}").mkdir()
    assert holds.known() == {TEMPLATE: TWO}
    assert holds.of(TEMPLATE) == TWO and holds.of(f"sb-{uuid4()}") is None
    with pytest.raises(Unavailable):
        holds.of(SANDBOX)


def test_half_written_holds_are_swept_and_never_count(holds: Holds, tmp_path: Path) -> None:
    holds.put(SANDBOX, ONE)
    (tmp_path / "holds" / f".{TEMPLATE}.new").write_text("")
    assert holds.all() == {SANDBOX: ONE}
    assert holds.sweep() == 1
    assert [p.name for p in (tmp_path / "holds").iterdir()] == [SANDBOX]


@pytest.mark.parametrize("holder", ["", "sb-", "sb-..", "../sb", f"usr-{ONE}", str(ONE), "tpl-x/y"])
def test_only_ids_of_sandboxes_and_templates_hold(holds: Holds, holder: str) -> None:
    with pytest.raises(Invalid) as caught:
        holds.put(holder, ONE)
    assert caught.value.slug == "invalid_id"


def test_a_holder_has_one_name() -> None:
    assert checked_holder(SANDBOX) == SANDBOX
