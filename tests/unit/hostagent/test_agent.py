from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from wrenn_sandbox.core.errors import Conflict, Invalid
from wrenn_sandbox.hostagent.agent import SAME_SIGNAL_S, Orders, read_token, sole_user_of


def test_a_token_is_read_without_its_line_end(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0123456789abcdef\n")
    assert read_token(tmp_path / "token") == "0123456789abcdef"


@pytest.mark.parametrize("content", ["", "short", "with\x00nul-0123456789", "ünicode-0123456789", None])
def test_a_token_that_guards_nothing_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "token").write_text(content)
    with pytest.raises(Invalid) as refused:
        read_token(tmp_path / "token")
    assert refused.value.slug == "invalid_token_file" and str(tmp_path) in refused.value.message


def test_a_data_directory_has_one_user(tmp_path: Path) -> None:
    with sole_user_of(tmp_path / "d"):
        assert (tmp_path / "d" / "run").is_dir()
        with pytest.raises(Conflict) as taken:
            sole_user_of(tmp_path / "d").__enter__()
        assert taken.value.slug == "data_dir_in_use"
    with sole_user_of(tmp_path / "d"):
        pass


def test_a_burst_of_signals_is_one_and_only_a_later_one_is_impatience() -> None:
    gone: list[bool] = []
    orders = Orders(asyncio.Event(), lambda: gone.append(True))
    for now_s in (10.0, 10.0, 10.0 + SAME_SIGNAL_S):
        orders.heard(now_s)
        assert orders.stop.is_set() and gone == []
    orders.heard(10.1 + SAME_SIGNAL_S)
    assert gone == [True]
