from __future__ import annotations

import errno
import socket
from unittest.mock import MagicMock

import pytest

from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.rpc import listener


@pytest.mark.parametrize(
    ("name", "url"),
    [(("127.0.0.1", 80), "http://127.0.0.1:80"), (("::1", 8080, 0, 0), "http://[::1]:8080")],
)
def test_urls(name: tuple[str, int], url: str) -> None:
    assert listener.url_of(MagicMock(getsockname=lambda: name)) == url


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_it_sends_without_delay_and_is_closed_afterwards(
    monkeypatch: pytest.MonkeyPatch, host: str, family: int
) -> None:
    made = MagicMock()
    create = MagicMock(return_value=made)
    monkeypatch.setattr(listener.socket, "create_server", create)
    with listener.listening(host, 1) as given:
        assert given is made
        made.setsockopt.assert_called_once_with(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.__exit__.assert_not_called()
    made.__exit__.assert_called_once()
    assert create.call_args.args == ((host, 1),) and create.call_args.kwargs["family"] == family


def test_a_taken_address_is_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = OSError(errno.EADDRINUSE, "Address already in use")
    monkeypatch.setattr(listener.socket, "create_server", MagicMock(side_effect=taken))
    with pytest.raises(Unavailable) as refused, listener.listening("127.0.0.1", 1):
        pytest.fail("it was given")
    assert refused.value.slug == "address_in_use" and "127.0.0.1:1" in refused.value.message
