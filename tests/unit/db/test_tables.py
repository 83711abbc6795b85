from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

import pytest
from sqlalchemy.dialects import postgresql, sqlite

from wrenn_sandbox.db.tables import UtcDateTime, UuidType, metadata

DIALECTS = [sqlite.dialect(), postgresql.dialect()]
VALUE = UUID("123e4567-e89b-42d3-a456-426614174000")


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.name)
def test_uuids_go_in_and_come_out(dialect) -> None:
    kind = UuidType()
    stored = kind.process_bind_param(VALUE, dialect)
    assert stored == (VALUE if dialect.name == "postgresql" else str(VALUE))
    assert kind.process_result_value(stored, dialect) == VALUE
    assert kind.process_bind_param(None, dialect) is None and kind.process_result_value(None, dialect) is None


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.name)
@pytest.mark.parametrize("value", [str(VALUE), "sb-" + str(VALUE), 7])
def test_nothing_but_a_uuid_goes_in(dialect, value) -> None:
    with pytest.raises(TypeError):
        UuidType().process_bind_param(value, dialect)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.name)
def test_moments_are_utc(dialect) -> None:
    kind = UtcDateTime()
    local = datetime(2026, 5, 4, 12, tzinfo=timezone(timedelta(hours=2)))
    stored = kind.process_bind_param(local, dialect)
    assert stored == local and stored.tzinfo is UTC
    assert kind.process_result_value(stored.replace(tzinfo=None), dialect) == local
    with pytest.raises(TypeError):
        kind.process_bind_param(datetime(2026, 5, 4), dialect)


def test_every_foreign_key_and_id_has_its_check_on_sqlite() -> None:
    for table in metadata.tables.values():
        ids = {c.name for c in table.columns if isinstance(c.type, UuidType)}
        checked = {str(c.name).removesuffix("_is_uuid") for c in table.constraints if "_is_uuid" in str(c.name)}
        assert {name.removeprefix(f"ck_{table.name}_") for name in checked} == ids
