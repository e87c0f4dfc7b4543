"""DICOMweb (PS3.18): store, search, retrieve and the worklist over HTTP, by the same rooms as over DIMSE."""
