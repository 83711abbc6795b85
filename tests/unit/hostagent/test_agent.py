from __future__ import annotations

from pathlib import Path

import pytest

from wrenn_sandbox.core.errors import Conflict, Invalid
from wrenn_sandbox.hostagent.agent import read_token, sole_user_of


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
