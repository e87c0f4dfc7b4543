"""The exception tree of the database room.

DatabaseError
├── SchemaMismatch      the database was made by another version of Hemonode
├── UnknownStudy        no such study, revision or delivery
└── LeaseLost           somebody else holds the job or delivery now
"""


class DatabaseError(Exception):
    """The database refused or contradicts what was asked."""


class SchemaMismatch(DatabaseError):
    """The database was made by another version of Hemonode."""


class UnknownStudy(DatabaseError):
    """No such study, revision or delivery is known."""


class LeaseLost(DatabaseError):
    """The lease expired and somebody else holds the job or delivery now; nothing was written."""
