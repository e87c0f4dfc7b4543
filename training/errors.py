"""The exceptions of training: one tree.

::

    TrainingError
    ├── DataError        the labelled studies cannot be used as asked
    │   └── LeakageError a patient or an image stands on both sides of a split
    ├── DigestError      a frozen data set or a file in it is not what was frozen
    └── DivergedError    the loss is no longer a number
"""

from __future__ import annotations


class TrainingError(Exception):
    """Weights could not be made or judged; the message says why."""


class DataError(TrainingError):
    """The labelled studies cannot be used as asked."""


class LeakageError(DataError):
    """A patient or an image stands on both sides of a split."""


class DigestError(TrainingError):
    """A frozen data set, or a file in it, is not what was frozen. Never left out quietly: it stops the run."""


class DivergedError(TrainingError):
    """The loss is no longer a number; nothing made after this point is usable."""
