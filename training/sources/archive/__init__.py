"""The node's own archive: `freeze` makes lists of its labelled studies, `frozen` reads them; only these know `db`."""
