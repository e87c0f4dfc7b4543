"""Hemonode's DICOM node: receive, assemble, flag, report, deliver, query."""

__version__ = "0.1.0"
