"""Sizes of terminals. Terminals themselves: tests/platform/envd/test_processes.py."""

from __future__ import annotations

import pytest
from connectrpc.code import Code
from connectrpc.errors import ConnectError

from wrenn_sandbox.envd.pty import Size, size_of


def test_sizes() -> None:
    assert size_of(0, 0) == Size(80, 24)
    assert size_of(100, 0) == Size(100, 24)
    assert size_of(65535, 65535) == Size(65535, 65535)


@pytest.mark.parametrize("size", [(65536, 1), (1, 4_000_000_000)])
def test_impossible_sizes(size: tuple[int, int]) -> None:
    with pytest.raises(ConnectError) as caught:
        size_of(*size)
    assert caught.value.code == Code.INVALID_ARGUMENT
