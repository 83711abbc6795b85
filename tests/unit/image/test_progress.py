from wrenn_sandbox.image.progress import Outcome, StepReport, line_finished, line_started


def test_lines_say_what_how_long_and_how_big() -> None:
    assert line_started("tools", "building") == "  tools      … building"
    built = StepReport("tools", Outcome.BUILT, 14.23, "3f0c" * 8, 45_100_000)
    assert line_finished(built) == "  tools      built in 14.2 s  45.1 MB  3f0c3f0c3f0c"


def test_what_was_not_built_took_no_time() -> None:
    assert line_finished(StepReport("kernel", Outcome.CURRENT, 0.01, "ab" * 16)) == "  kernel     current  abababababab"


def test_a_failed_step_has_no_digest() -> None:
    assert line_finished(StepReport("rootfs", Outcome.FAILED, 2.0)) == "  rootfs     failed in 2.0 s"
