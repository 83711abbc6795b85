"""docs/errors.md names every slug there is, with its HTTP status, and no other."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tests.sources import ROOT, SOURCES, calls, tree
from wrenn_sandbox.controlplane.http import errors as http_errors
from wrenn_sandbox.core import errors
from wrenn_sandbox.envd.download import _REASONS
from wrenn_sandbox.hostagent import guest
from wrenn_sandbox.hostagent.timers import Ending
from wrenn_sandbox.rpc import relay

PAGE = ROOT / "docs" / "errors.md"
#: Records that carry the slug of a state, not of an answer; there it may stand without its name.
RECORDS = {"Stop", "Move", "Change", "Seen", "Finding"}
#: The answer where a slug is no answer of the API.
NO_ANSWER = "–"
#: Slugs of answers that are no exceptions of ours.
ELSEWHERE = {"http_error": "4xx", "guest_error": "500, 503", "invalid_method": "405"}
_SLUG = re.compile(r"[a-z]+(?:_[a-z]+)+")
_ROW = re.compile(r"\| `([a-z_]+)` \| ([0-9x, –]+) \| \S.*\.? \|")

CLASSES = {
    name: cls
    for module in (errors, relay)
    for name, cls in vars(module).items()
    if isinstance(cls, type) and issubclass(cls, errors.WrennError)
}


def _texts(node: ast.expr, constants: dict[str, str]) -> Iterator[str]:
    """The texts that an expression may give."""
    match node:
        case ast.Constant(value=str(text)) if text:
            yield text
        case ast.Name(id=name) if name in constants:
            yield constants[name]
        case ast.BoolOp(values=parts):
            for part in parts:
                yield from _texts(part, constants)
        case ast.IfExp(body=body, orelse=orelse):
            yield from _texts(body, constants)
            yield from _texts(orelse, constants)


def _constants(module: ast.Module) -> dict[str, str]:
    return {
        target.id: node.value.value
        for node in module.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _slugs_of(path: Path) -> Iterator[tuple[str, str]]:
    """Slug and status of every error that is raised, and every state that is written, in one module."""
    constants = _constants(tree(path))
    for node in calls(path):
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        status = (
            str(errors.http_status(CLASSES[name]("x"))) if name in CLASSES and name != "UpgradeRefused" else NO_ANSWER
        )
        for keyword in node.keywords:
            if keyword.arg == "slug":
                yield from ((slug, status) for slug in _texts(keyword.value, constants))
        if name in RECORDS:
            for argument in node.args:
                yield from ((slug, NO_ANSWER) for slug in _texts(argument, constants) if _SLUG.fullmatch(slug))


def slugs() -> dict[str, set[str]]:
    """Every slug, with the statuses it comes with."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in SOURCES:
        for slug, status in _slugs_of(path):
            found[slug].add(status)
    for cls in CLASSES.values():
        found[cls.default_slug].add(str(errors.http_status(cls.__new__(cls))))
    for status, slug in http_errors._FRAMEWORK_SLUGS.items():
        found[slug].add(str(status))
    for cls, slug in guest._FILE_ERRORS.values():
        found[slug].add(str(errors.http_status(cls("x"))))
    for slug, statuses in ELSEWHERE.items():
        found[slug].update(statuses.split(", "))
    for outcome in _REASONS:
        found[outcome.name.lower()].add(str(outcome.value))
    for ending in Ending:
        found[ending.value].add(NO_ANSWER)
    for statuses in found.values():
        if len(statuses) > 1:
            statuses.discard(NO_ANSWER)
    return dict(found)


def test_the_page_names_every_slug_with_its_status() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    malformed = [row for row in rows if not _ROW.fullmatch(row)]
    assert malformed == []
    listed = {match[1]: set(match[2].strip().split(", ")) for row in rows if (match := _ROW.fullmatch(row))}
    assert len(listed) == len(rows), "a slug is listed twice"
    assert listed == slugs()
