"""What others may ask this node for."""
