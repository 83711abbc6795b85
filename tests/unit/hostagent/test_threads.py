from __future__ import annotations

from wrenn_sandbox.hostagent import threads
from wrenn_sandbox.vmm import cancels


def test_there_is_one_way_into_a_thread() -> None:
    assert threads.in_thread is cancels.in_thread
