import ctypes

import pytest

from wrenn_sandbox.core.errors import Bug, Unavailable
from wrenn_sandbox.net import nftables


class Library:
    """libnftables as far as it is used; answers as told and keeps count of contexts."""

    def __init__(
        self, *, code: int = 0, output: bytes | None = b"", error: bytes | None = b"", context: int = 1
    ) -> None:
        self.code, self.output, self.error, self.context = code, output, error, context
        self.commands: list[bytes] = []
        self.flags: list[int] = []
        self.open = 0

    def nft_ctx_new(self, flags: int) -> int:
        self.open += bool(self.context)
        return self.context

    def nft_ctx_free(self, context: int) -> None:
        self.open -= 1

    def nft_ctx_buffer_output(self, context: int) -> int:
        return 0

    def nft_ctx_buffer_error(self, context: int) -> int:
        return 0

    def nft_ctx_output_set_flags(self, context: int, flags: int) -> None:
        self.flags.append(flags)

    def nft_run_cmd_from_buffer(self, context: int, commands: bytes) -> int:
        self.commands.append(commands)
        return self.code

    def nft_ctx_get_error_buffer(self, context: int) -> bytes | None:
        return self.error

    def nft_ctx_get_output_buffer(self, context: int) -> bytes | None:
        return self.output


def use(monkeypatch: pytest.MonkeyPatch, library: Library) -> Library:
    monkeypatch.setattr(nftables, "_library", lambda: library)
    return library


def test_all_commands_go_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    library = use(monkeypatch, Library())
    nftables.transact("table inet a\ndelete table inet a\n")
    assert library.commands == [b"table inet a\ndelete table inet a\n"]
    assert library.open == 0


def test_a_refusal_is_a_bug_with_the_complaint(monkeypatch: pytest.MonkeyPatch) -> None:
    library = use(monkeypatch, Library(code=-1, error=b"syntax error"))
    with pytest.raises(Bug, match="syntax error") as caught:
        nftables.transact("nonsense")
    assert caught.value.slug == "firewall_refused"
    assert library.open == 0


def test_without_rights_there_is_no_context(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Library(context=0))
    with pytest.raises(Unavailable) as caught:
        nftables.transact("")
    assert caught.value.slug == "firewall_unavailable"


def test_lists_are_read_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    library = use(monkeypatch, Library(output=b'{"nftables": [{"chain": {"name": "x"}}]}'))
    assert nftables.query("list chains") == [{"chain": {"name": "x"}}]
    assert library.flags == [1 << 4]
    use(monkeypatch, Library(output=None))
    assert nftables.query("list chains") == []


def test_only_ascii_reaches_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    library = use(monkeypatch, Library())
    with pytest.raises(UnicodeEncodeError):
        nftables.transact("täble")
    assert library.open == 0


def test_a_missing_library_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> ctypes.CDLL:
        raise OSError("cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    nftables._library.cache_clear()
    try:
        assert not nftables.available()
        with pytest.raises(Unavailable, match="libnftables1"):
            nftables.transact("")
    finally:
        nftables._library.cache_clear()
