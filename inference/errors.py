"""The exception tree of the inference package.

::

    InferenceError
    └── UnreadablePixels     the file's pixels cannot become Hounsfield units
        └── WrappedPixels    they could, with a repair that nobody asked for

Each carries one sentence that may be shown to a reader; none carries patient data.
"""

from __future__ import annotations


class InferenceError(Exception):
    """Something the package cannot do, in one sentence."""


class UnreadablePixels(InferenceError):
    """The pixels of an instance cannot become Hounsfield units."""


class WrappedPixels(UnreadablePixels):
    """Twelve unsigned bits with an intercept near zero: signed values that wrapped around.

    Not a situation the DICOM Standard knows; `inference.volume.read_slices` repairs it only when asked to.
    """
