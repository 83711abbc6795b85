from __future__ import annotations

from wrenn_sandbox.db.templates import ALIASES


def test_no_alias_hides_another_alias() -> None:
    assert ALIASES == {"minimal": "base"}
    assert not set(ALIASES) & set(ALIASES.values())
