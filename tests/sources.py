"""The product's own source files, each parsed and walked once for all tests that look at them."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "wrenn_sandbox"
SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if "gen" not in p.parts)

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def _nodes(path: Path) -> tuple[list[Function], list[ast.ClassDef], list[ast.Call]]:
    functions, classes, calls = [], [], []
    for node in ast.walk(tree(path)):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                functions.append(node)
            case ast.ClassDef():
                classes.append(node)
            case ast.Call():
                calls.append(node)
    return functions, classes, calls


def functions(path: Path) -> list[Function]:
    return _nodes(path)[0]


def classes(path: Path) -> list[ast.ClassDef]:
    return _nodes(path)[1]


def calls(path: Path) -> list[ast.Call]:
    return _nodes(path)[2]
