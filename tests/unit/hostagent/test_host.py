from __future__ import annotations

from tests.unit.hostagent.world import FakeWorld, base


def test_a_base_knows_its_files(world: FakeWorld) -> None:
    found = base(world.root)
    names = {"memory": found.memory, "state": found.state, "disk.qcow2": found.disk}
    assert {name: path.name for name, path in names.items()} == {name: name for name in names}
    assert {path.parent for path in names.values()} == {world.root / "images" / "bases" / "1x512"}


def test_a_host_is_made_of_parts_that_can_be_replaced(world: FakeWorld) -> None:
    host = world.host()
    assert host.driver is world and host.network is world and host.capacity is world.capacity
