"""The chain of output, step by step and at random."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wrenn_sandbox.envd.output import CHUNK_OVERHEAD_BYTES, Chunk, Cursor, OutputLog, Source


def nothing() -> None:
    """Wakes nobody."""


def chunk(text: str) -> Chunk:
    return Chunk(Source.STDOUT, text.encode())


def drain(log: OutputLog, cursor: Cursor, now: float = 0.0) -> str:
    text = ""
    while (piece := log.next(cursor, now)) is not None:
        text += piece.data.decode()
    return text


def test_a_cursor_sees_what_follows_it_in_order() -> None:
    log = OutputLog()
    log.append(chunk("before"))
    cursor = log.attach(0, nothing)
    log.append(chunk("a"))
    log.append(Chunk(Source.STDERR, b"b"))
    assert [log.next(cursor, 0), log.next(cursor, 0)] == [chunk("a"), Chunk(Source.STDERR, b"b")]
    assert log.next(cursor, 0) is None


def test_every_cursor_is_told_and_gets_all() -> None:
    told: list[int] = []
    log = OutputLog()
    cursors = [log.attach(0, lambda n=n: told.append(n)) for n in range(3)]
    log.append(chunk("x"))
    assert sorted(told) == [0, 1, 2]
    assert [drain(log, cursor) for cursor in cursors] == ["x"] * 3


def test_the_slowest_cursor_fills_it() -> None:
    log = OutputLog(window_bytes=4 * CHUNK_OVERHEAD_BYTES)
    slow, fast = log.attach(0, nothing), log.attach(0, nothing)
    for _ in range(3):
        log.append(chunk("x"))
        drain(log, fast)
        assert not log.full
    log.append(chunk("x"))
    drain(log, fast)
    assert log.full and not log.roomy
    log.next(slow, 0)
    assert not log.full and not log.roomy  # between the two, so that reading is not switched at every chunk
    log.next(slow, 0)
    log.next(slow, 0)
    assert log.roomy
    log.append(chunk("x" * 10_000))
    drain(log, fast)
    assert log.full
    log.detach(slow)
    log.detach(slow)
    assert not log.full and log.unread == 0


def test_without_a_cursor_it_is_never_full() -> None:
    log = OutputLog(window_bytes=100)
    for _ in range(1000):
        log.append(chunk("x" * 1000))
    assert log.unread == 0 and not log.full and log.roomy


def test_a_replay_is_the_tail() -> None:
    log = OutputLog(tail_bytes=3 * (1 + CHUNK_OVERHEAD_BYTES))
    for letter in "abcdef":
        log.append(chunk(letter))
    assert drain(log, log.attach(0, nothing, replay=True)) == "def"
    assert drain(log, log.attach(0, nothing)) == ""
    log.forget_tail()
    assert drain(log, log.attach(0, nothing, replay=True)) == ""


def test_a_chunk_larger_than_the_tail_is_no_replay() -> None:
    log = OutputLog(tail_bytes=10)
    log.append(chunk("x" * 100))
    assert drain(log, log.attach(0, nothing, replay=True)) == ""


def test_only_those_who_lag_and_stand_still_are_cut() -> None:
    told: list[str] = []
    log = OutputLog()
    stuck = log.attach(0, lambda: told.append("stuck"))
    slow = log.attach(0, nothing)
    done = log.attach(0, nothing)
    assert log.oldest_move() is None
    log.append(chunk("a"))
    log.append(chunk("b"))
    log.next(slow, 25)
    drain(log, done, 1)
    assert log.oldest_move() == 0
    told.clear()
    assert log.cut_stalled(10) == 1
    assert (stuck.cut, slow.cut, done.cut) == (True, False, False)
    assert told == ["stuck"]
    assert log.next(stuck, 30) is None
    assert log.oldest_move() == 25
    assert drain(log, slow) == "b"


def test_memory_is_given_back() -> None:
    log = OutputLog(tail_bytes=0)
    cursor = log.attach(0, nothing)
    first = cursor.link
    for _ in range(5):
        log.append(chunk("x"))
    drain(log, cursor)
    import gc

    assert [o for o in gc.get_referrers(first) if o is log or o is cursor] == []


@given(st.lists(st.one_of(st.just("read0"), st.just("read1"), st.just("attach"), st.integers(0, 300))))
def test_no_reader_ever_misses_a_byte(steps: list[str | int]) -> None:
    log = OutputLog(window_bytes=2000, tail_bytes=500)
    everything: list[bytes] = []
    readers: list[tuple[Cursor, int, list[bytes]]] = [(log.attach(0, nothing), 0, [])]
    for number, step in enumerate(steps):
        if step == "attach":
            readers.append((log.attach(0, nothing), len(everything), []))
        elif isinstance(step, int):
            everything.append(b"%d:" % number + b"x" * step)
            log.append(Chunk(Source.STDOUT, everything[-1]))
        elif int(step[-1]) < len(readers):
            cursor, _, got = readers[int(step[-1])]
            if (piece := log.next(cursor, 0)) is not None:
                got.append(piece.data)
    for cursor, start, got in readers:
        while (piece := log.next(cursor, 0)) is not None:
            got.append(piece.data)
        assert got == everything[start:]
    assert log.unread == 0
