"""Hemonode's DICOM node: receive, assemble, flag, report, deliver, query."""
