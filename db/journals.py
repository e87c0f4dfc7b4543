"""How far each receiver's journal is dispensable: files and rows up to there are durable without it."""

from __future__ import annotations

import sqlalchemy as sa

from db.engine import insert_into
from db.schema import journals, now


def mark(tx: sa.Connection, *, name: str, serial: int) -> None:
    """Segments of the journal up to `serial` are dispensable.

    To be committed durably, which makes every earlier commit durable as well: databases write commits in order.
    """
    values = {"serial": serial, "at": now()}
    query = insert_into(tx, journals).values(name=name, **values)
    tx.execute(query.on_conflict_do_update(index_elements=["name"], set_=values))


def serial_of(tx: sa.Connection, name: str) -> int:
    """The serial last marked; 0 for a journal that is not known."""
    found = tx.execute(sa.select(journals.c.serial).where(journals.c.name == name)).scalar()
    return int(found or 0)
