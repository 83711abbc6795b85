from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

from wrenn_sandbox.controlplane.http.docs import as_text, describe, page
from wrenn_sandbox.controlplane.http.routes import HTTP, LIVE

CHECKED_IN = Path(__file__).resolve().parents[4] / "docs" / "openapi.json"


def test_the_checked_in_document_is_the_present_one(bare) -> None:
    made = as_text(describe(bare))
    assert made == CHECKED_IN.read_text(), "run: python -m wrenn_sandbox.controlplane openapi > docs/openapi.json"


def test_it_has_every_endpoint_with_its_errors_and_its_key(bare) -> None:
    document = describe(bare)
    listed = {(method.upper(), path) for path, operations in document["paths"].items() for method in operations}
    assert listed == {(e.method, e.path) for e in HTTP}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert "422" not in operation["responses"] and "default" in operation["responses"]
            assert ("security" in operation) == (path != "/health")
    assert "ValidationError" not in json.dumps(document)


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(bare) -> None:
    text = page(describe(bare))
    seen: set[str] = set()
    ids: set[str] = set()

    class Links(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag not in ("script", "link", "img", "iframe")
            given = dict(attrs)
            if "href" in given:
                seen.add(str(given["href"]))
            if "id" in given:
                ids.add(str(given["id"]))

    Links().feed(text)
    assert {link[1:] for link in seen if link.startswith("#")} <= ids
    assert {link for link in seen if not link.startswith("#")} == {"/openapi.json"}
    assert all(e.path in text for e in (*HTTP, *LIVE))
