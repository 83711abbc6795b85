import pytest

from wrenn_sandbox.image.tsc import rate_khz


@pytest.mark.parametrize(
    ("ticks", "nanoseconds", "khz"),
    [(259_613_400, 100_000_000, 2_596_134), (100, 100, 1_000_000), (299_999_951, 100_000_000, 3_000_000)],
)
def test_ticks_in_a_span_are_a_rate(ticks: int, nanoseconds: int, khz: int) -> None:
    assert rate_khz(ticks, nanoseconds) == khz
