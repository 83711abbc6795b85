"""What the pages name exists: every relative link, and every path in a code span."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "wrenn_sandbox"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

_FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_SPAN = re.compile(r"`([^`\n]+)`")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_SUFFIXES = {".py", ".md", ".toml", ".proto", ".c", ".sh", ".txt", ".in"}
#: Spans that look like paths of ours and are something else.
NO_PATHS = {"__main__.py"}  # any package's
#: Files that the product writes, by their last name.
WRITTEN = {"current.json", "accelerator.json"}


def _looks_like_a_path(span: str) -> bool:
    if re.search(r"[\s<>{}*…]", span) or span.startswith(("/", "-", "~", "http", ".building")):
        return False
    first = span.split("/", maxsplit=1)[0]
    known = (ROOT / first).exists() or (PACKAGE / first).exists()
    return ("/" in span and known) or Path(span).suffix in _SUFFIXES


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in _LINK.findall(_FENCED.sub("", page.read_text())):
        where, _, anchor = link.partition("#")
        target = page.parent / where if where else page
        if "://" in link:
            continue
        if not target.exists() or (
            anchor and anchor not in {_anchor(heading) for heading in _HEADING.findall(target.read_text())}
        ):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_paths_in_code_spans_exist(page: Path) -> None:
    spans = {span for span in _SPAN.findall(_FENCED.sub("", page.read_text())) if _looks_like_a_path(span)}
    spans = {span for span in spans - NO_PATHS if Path(span).name not in WRITTEN}
    gone = [s for s in sorted(spans) if not any((top / s.partition("::")[0]).exists() for top in (ROOT, PACKAGE))]
    assert gone == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z]+)", page.read_text())) - targets == set()


def test_the_check_sees_paths() -> None:
    assert _looks_like_a_path("core/nothing.py") and _looks_like_a_path("tests/nowhere/")
    assert not _looks_like_a_path("/v1/sandboxes") and not _looks_like_a_path("POST /v1/sandboxes")
