"""The channels that carry the flag; a channel is one file here, its section of node.toml and its place in `KINDS`."""

from node.config import Settings
from node.flag import ups
from node.flag.flag import Channel

KINDS = (ups,)


def channels(settings: Settings) -> tuple[Channel, ...]:
    """Every configured channel."""
    return tuple(channel for kind in KINDS for channel in kind.channels(settings))
