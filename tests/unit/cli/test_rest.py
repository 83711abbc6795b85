from __future__ import annotations

import pytest

from wrenn_sandbox.cli.rest import progress
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb


@pytest.mark.parametrize(
    ("answer", "kill", "line"),
    [
        (pb.DrainResponse(), False, ""),
        (pb.DrainResponse(total=3, done=1), False, "pausing what runs: 1 of 3"),
        (pb.DrainResponse(total=3, done=1), True, "destroying what runs: 1 of 3"),
        (pb.DrainResponse(total=3, done=3), False, "3 of 3 sandboxes paused"),
        (pb.DrainResponse(total=3, done=3), True, "3 of 3 sandboxes destroyed"),
    ],
)
def test_one_line_says_how_far_it_is(answer: pb.DrainResponse, kill: bool, line: str) -> None:
    assert progress(answer, kill=kill) == line


def test_what_could_not_be_paused_is_not_passed_over() -> None:
    line = progress(pb.DrainResponse(total=3, done=2, failed=1), kill=False)
    assert "2 of 3 sandboxes paused" in line and "1 could not be and run on" in line and "wrenn up" in line
