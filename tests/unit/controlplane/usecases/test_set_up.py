from __future__ import annotations

import asyncio
from pathlib import Path

from wrenn_sandbox.controlplane.usecases.issue_keys import key_hash
from wrenn_sandbox.controlplane.usecases.set_up import set_up
from wrenn_sandbox.db import api_keys
from wrenn_sandbox.db.engine import open_database


def starts(tmp_path: Path, *contents: str | None) -> list[str]:
    """The key after each start; ``contents`` is what is done to the key file before it."""

    async def main() -> list[str]:
        file, keys, hosts = tmp_path / "key", [], set()
        async with open_database(f"sqlite:///{tmp_path / 'x.db'}") as database:
            for content in contents:
                if content == "lost":
                    file.unlink()
                elif content is not None:
                    file.write_text(content)
                hosts.add(await set_up(database, "http://a", file))
                assert file.stat().st_mode & 0o777 == 0o600 or content not in (None, "lost")
                keys.append(file.read_text().strip())
                async with database.read() as connection:
                    assert await api_keys.by_hash(connection, key_hash(keys[-1]) or "") is not None
        assert len(hosts) == 1
        return keys

    return asyncio.run(main())


def test_the_first_key_stays(tmp_path: Path) -> None:
    first, second = starts(tmp_path, None, None)
    assert first == second


def test_a_lost_or_foreign_key_file_is_made_anew(tmp_path: Path) -> None:
    keys = starts(tmp_path, None, "lost", "nonsense", "wrn_" + "0" * 32)
    assert len(set(keys)) == 4
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".new")] == []
