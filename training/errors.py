"""The exceptions of training: one tree.

::

    TrainingError
    ├── DataError        the labelled studies cannot be used as asked
    │   └── LeakageError a patient stands on both sides of a split
    └── DivergedError    the loss is no longer a number
"""

from __future__ import annotations


class TrainingError(Exception):
    """Weights could not be made or judged; the message says why."""


class DataError(TrainingError):
    """The labelled studies cannot be used as asked."""


class LeakageError(DataError):
    """A patient stands on both sides of a split."""


class DivergedError(TrainingError):
    """The loss is no longer a number; nothing made after this point is usable."""
