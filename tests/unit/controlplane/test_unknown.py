from __future__ import annotations

from uuid import UUID

from structlog.testing import capture_logs

from wrenn_sandbox.controlplane import unknown
from wrenn_sandbox.controlplane.unknown import AGAIN_S, Unknown
from wrenn_sandbox.core.ids import SandboxId

ONE, TWO = SandboxId(UUID(int=1)), SandboxId(UUID(int=2))


def test_it_is_said_once_in_a_while_and_of_new_ones_at_once(monkeypatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(unknown.time, "monotonic", lambda: clock[0])
    told = Unknown()

    def said(*ids: SandboxId) -> int:
        with capture_logs() as lines:
            told.tell("sandboxes", ids)
        return len(lines)

    assert said() == 0
    assert (said(ONE), said(ONE), said(ONE, TWO), said(TWO)) == (1, 0, 1, 0)
    clock[0] += AGAIN_S
    assert (said(ONE), said(ONE)) == (1, 0)
    many = [SandboxId(UUID(int=n)) for n in range(50)]
    with capture_logs() as lines:
        told.tell("sandboxes", many)
    assert [(line["count"], line["some"]) for line in lines] == [(50, [str(each) for each in many[:5]])]
