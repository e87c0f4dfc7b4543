"""From DICOM files to a result. Knows no network and no database."""
