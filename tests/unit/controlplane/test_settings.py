from __future__ import annotations

from pathlib import Path

import pytest

from wrenn_sandbox.controlplane.settings import Settings
from wrenn_sandbox.core.errors import Invalid


def test_a_flag_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WRENN_LISTEN", "0.0.0.0:1")
    monkeypatch.setenv("WRENN_DOMAIN", "sbx.example")
    settings = Settings.from_flags(["--listen", "[::1]:0", "--agent-url", "http://a/"])
    assert settings.address == ("::1", 0) and settings.domain == "sbx.example" and settings.agent_url == "http://a"
    assert Settings.from_flags([]).address == ("0.0.0.0", 1)


@pytest.mark.parametrize(
    "flags",
    [["--listen", "x"], ["--listen", ":80"], ["--listen", "a:70000"], ["--listen", "a:-1"], ["--agent-url", "a:1"]],
)
def test_nonsense_names_its_flag(flags: list[str]) -> None:
    with pytest.raises(Invalid, match=flags[0]) as caught:
        Settings.from_flags(flags)
    assert caught.value.slug == "invalid_option"


def test_the_token_is_read_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("secret\n")
    assert Settings.from_flags(["--agent-token-file", str(file)]).agent_token() == "secret"
    with pytest.raises(Invalid, match="agent-token-file"):
        Settings.from_flags(["--agent-token-file", str(tmp_path / "none")]).agent_token()
