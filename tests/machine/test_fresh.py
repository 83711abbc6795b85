"""Unique and current after a restore: randomness, identity and clock."""

from __future__ import annotations

import time

from tests.running import Platform


def test_the_first_random_bytes_of_siblings_differ(wrenn: Platform) -> None:
    made = [str(wrenn.create()["id"]) for _ in range(3)]
    first = [wrenn.run(i, "head", "-c", "32", "/dev/urandom")["stdout"] for i in made]
    assert len(set(map(str, first))) == 3


def test_the_first_command_prints_the_hosts_time(wrenn: Platform) -> None:
    made = wrenn.create()["id"]
    before = time.time()
    inside = float(wrenn.sh(made, "date +%s.%N"))
    assert before - 1 <= inside <= time.time() + 1
