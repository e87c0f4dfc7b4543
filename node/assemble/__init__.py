"""When a study is complete: evidence, one verdict with its reason, and what late slices mean."""

from node.assemble.memory import Memory, Moment
from node.assemble.pacs_count import PacsCounts
from node.assemble.tick import tick

__all__ = ["Memory", "Moment", "PacsCounts", "tick"]
