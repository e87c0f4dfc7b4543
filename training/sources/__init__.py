"""Where labelled studies come from: every source yields the same kind of study."""
