"""Which builds are needed, and in which order the others go: mark and sweep over a picture of the store.

A *storage* is one file of memory pages, as headers name them: the packed pages of a build by the build's id, its flat
RAM file by ``flat_storage``. A flattened build has both for as long as somebody needs the packed one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from uuid import UUID, uuid5


@dataclass(frozen=True, slots=True)
class Needs:
    """What one build needs of others: ``storages`` of memory (its own may be among them) and the build its disk is on.

    ``unknown`` says that it could not be found out.
    """

    storages: frozenset[UUID] = frozenset()
    disk: UUID | None = None
    unknown: bool = False


@dataclass(frozen=True, slots=True)
class Marked:
    """What lives: builds, and the storages that they read. Not ``certain`` when the needs of one are unknown: then
    nothing at all may be removed.
    """

    builds: frozenset[UUID]
    storages: frozenset[UUID]
    certain: bool


def flat_storage(build_id: UUID) -> UUID:
    """The name, in headers, of the flat RAM file of a build that has packed pages, too."""
    return uuid5(build_id, "memory.flat")


def owners(builds: Iterable[UUID]) -> dict[UUID, UUID]:
    """The build in whose directory each storage is."""
    found = {}
    for build_id in builds:
        found[build_id] = found[flat_storage(build_id)] = build_id
    return found


def mark(needs: Mapping[UUID, Needs], roots: Iterable[UUID]) -> Marked:
    """Everything that is reached from ``roots``. ``needs`` has an item for every build there is."""
    owner = owners(needs)
    live: set[UUID] = set()
    storages: set[UUID] = set()
    certain = True
    todo = list(roots)
    while todo:
        build_id = todo.pop()
        if build_id in live:
            continue
        if build_id not in needs:  # gone: nothing that can be kept would bring it back
            continue
        live.add(build_id)
        needed = needs[build_id]
        certain = certain and not needed.unknown
        storages |= needed.storages
        todo += [owner.get(storage, storage) for storage in needed.storages]
        todo += [needed.disk] if needed.disk is not None else []
    return Marked(frozenset(live), frozenset(storages), certain)


def removal_order(needs: Mapping[UUID, Needs], dead: Iterable[UUID]) -> list[UUID]:
    """``dead`` with every build before those it needs: a crash in between leaves none whose ground is gone."""
    owner = owners(needs)
    left = sorted(dead, key=str)
    order: list[UUID] = []
    done: set[UUID] = set()

    def below(build_id: UUID) -> list[UUID]:
        needed = needs[build_id]
        found = {owner[s] for s in needed.storages if s in owner} | ({needed.disk} if needed.disk else set())
        return sorted((b for b in found if b in wanted and b != build_id), key=str)

    wanted = frozenset(left)
    for start in left:  # depth first without recursion: a chain may be longer than Python's stack
        stack = [(start, iter(below(start)))] if start not in done else []
        done.add(start)
        while stack:
            build_id, rest = stack[-1]
            following = next((b for b in rest if b not in done), None)
            if following is None:
                stack.pop()
                order.append(build_id)
            else:
                done.add(following)
                stack.append((following, iter(below(following))))
    return order[::-1]
