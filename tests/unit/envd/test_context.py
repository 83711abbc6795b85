"""The state of the guest."""

from __future__ import annotations

from wrenn_sandbox.envd.context import GuestContext


def test_every_process_is_told_where_it_is() -> None:
    context = GuestContext(sandbox_id="sb-1", template_id="base", envs={"A": "1"})
    assert context.all_envs() == {
        "WRENN_SANDBOX": "true",
        "WRENN_SANDBOX_ID": "sb-1",
        "WRENN_TEMPLATE_ID": "base",
        "A": "1",
    }


def test_outside_a_guest_there_is_no_identity() -> None:
    assert GuestContext(is_guest=False).all_envs() == {"WRENN_SANDBOX": "false"}


def test_the_variables_of_init_win() -> None:
    assert GuestContext(envs={"WRENN_SANDBOX": "x"}).all_envs() == {"WRENN_SANDBOX": "x"}


def test_contexts_share_nothing() -> None:
    GuestContext().envs["A"] = "1"
    assert GuestContext().envs == {}
