from __future__ import annotations

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from wrenn_sandbox.disk.gc import Needs, flat_storage, mark, owners, removal_order


def _id(number: int) -> UUID:
    return UUID(int=number + 1)


def _needs(*storages: int, disk: int | None = None, unknown: bool = False) -> Needs:
    return Needs(frozenset(map(_id, storages)), None if disk is None else _id(disk), unknown)


def test_a_build_keeps_those_with_its_pages_and_those_below_its_disk() -> None:
    needs = {
        _id(0): _needs(0),
        _id(1): _needs(0, 1, disk=0),
        _id(2): _needs(0, 2, disk=1),
        _id(3): _needs(0, 3, disk=0),
    }
    assert mark(needs, [_id(2)]).builds == {_id(0), _id(1), _id(2)}
    assert mark(needs, [_id(3), _id(0)]).builds == {_id(0), _id(3)}
    assert mark(needs, []).builds == frozenset()


def test_a_flat_file_belongs_to_its_build() -> None:
    flat = flat_storage(_id(1))
    needs = {_id(1): Needs(frozenset({flat})), _id(2): Needs(frozenset({flat, _id(2)}), _id(1))}
    marked = mark(needs, [_id(2)])
    assert marked.builds == {_id(1), _id(2)}
    assert marked.storages == {flat, _id(2)}  # so the packed pages of the first are not needed
    assert owners(needs)[flat] == _id(1)


def test_names_of_flat_files_are_their_own() -> None:
    assert len({flat_storage(_id(n)) for n in range(100)} | {_id(n) for n in range(100)}) == 200
    assert flat_storage(_id(1)) == flat_storage(_id(1))


def test_what_is_unknown_makes_everything_uncertain_only_when_it_lives() -> None:
    needs = {_id(0): _needs(0), _id(1): _needs(unknown=True)}
    assert mark(needs, [_id(0)]).certain
    assert not mark(needs, [_id(0), _id(1)]).certain


def test_a_build_that_is_gone_keeps_nothing_and_hinders_nothing() -> None:
    marked = mark({_id(0): _needs(0, 7)}, [_id(0), _id(9)])
    assert marked.builds == {_id(0)}
    assert marked.certain


def test_dependents_go_first() -> None:
    needs = {_id(0): _needs(0), _id(1): _needs(0, 1, disk=0), _id(2): _needs(0, 1, 2, disk=1), _id(3): _needs(0, 3)}
    order = removal_order(needs, [_id(0), _id(1), _id(2)])
    assert order == [_id(2), _id(1), _id(0)]


def test_a_chain_may_be_long() -> None:
    needs = {_id(n): _needs(n, max(n - 1, 0)) for n in range(5000)}
    assert removal_order(needs, needs)[0] == _id(4999)
    assert len(mark(needs, [_id(4999)]).builds) == 5000


@given(st.lists(st.lists(st.integers(0, 30), max_size=4), max_size=30), st.sets(st.integers(0, 29)))
def test_nothing_that_lives_lacks_its_ground_at_any_point_of_a_removal(graph: list[list[int]], held: set[int]) -> None:
    needs = {
        _id(n): _needs(n, *(b for b in below if b < n), disk=next((b for b in below if b < n), None))
        for n, below in enumerate(graph)
    }
    live = mark(needs, map(_id, held)).builds
    present = set(needs)
    for gone in removal_order(needs, set(needs) - live):
        present.remove(gone)
        assert all(needs[b].storages & needs.keys() <= present for b in present)
    assert present == live
