"""The listening side: associations in, instances durable, everything else refused aloud and set aside."""
