from pathlib import Path

import pytest

from wrenn_sandbox.image.recipe import Sources, code, fingerprint


def test_any_input_changes_the_fingerprint(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("one")
    before = fingerprint("text", file)
    file.write_text("two")
    assert len({before, fingerprint("text", file), fingerprint("texts", file), fingerprint("text", file, "")}) == 4


def test_neighbouring_inputs_do_not_run_together() -> None:
    assert fingerprint("ab", "c") != fingerprint("a", "bc")


def test_in_a_list_the_names_count_too(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").write_text("x")
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    assert fingerprint([tmp_path / "a"]) != fingerprint([tmp_path / "b"])


def test_comments_docstrings_and_layout_are_no_inputs(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("1.py", "2.py", "3.py"))
    first.write_text('"""Doc."""\nX = (1, 2)\n')
    second.write_text('"""Another."""\n# why\nX = (\n    1,\n    2,\n)\n')
    third.write_text('"""Doc."""\nX = (1, 3)\n')
    assert code(str(first)) == code(str(second))
    assert code(str(first)) != code(str(third))


def test_the_checkout_has_all_that_goes_into_the_guest() -> None:
    sources = Sources.of_checkout()
    assert {p.name for p in sources.guest.iterdir()} >= {"initramfs-init.sh", "wrenn-init.sh", "exec-shim.c"}
    assert (sources.package / "envd").is_dir()
    assert sources.lock.is_file()


def test_outside_a_checkout_there_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wrenn_sandbox.core.errors import Unavailable
    from wrenn_sandbox.image import recipe

    monkeypatch.setattr(recipe, "__file__", str(tmp_path / "lib" / "site" / "wrenn_sandbox" / "image" / "recipe.py"))
    with pytest.raises(Unavailable, match="make image") as caught:
        Sources.of_checkout()
    assert caught.value.slug == "sources_missing"
