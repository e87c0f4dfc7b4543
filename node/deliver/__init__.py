"""What leaves the node: the outbox that tries until it is accepted, and the storing of reports."""
