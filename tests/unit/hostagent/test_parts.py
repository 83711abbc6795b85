from __future__ import annotations

from pathlib import Path
from uuid import UUID

from tests.unit.hostagent.world import FakeWorld, base
from wrenn_sandbox.hostagent.parts import Ground


def test_a_machine_stands_on_the_build_that_its_memory_is_compared_with(world: FakeWorld) -> None:
    found = base(world.root)
    ground = Ground(found.manifest, found.memory, Path("disk.qcow2"))
    assert ground.parent_id == UUID(found.manifest.build_id) and ground.pending == ()
