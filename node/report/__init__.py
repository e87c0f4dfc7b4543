"""The Structured Report: what the node says about a study, as a DICOM object."""
