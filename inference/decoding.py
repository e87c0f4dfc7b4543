"""Decodes stored instances a little ahead of who wants them, in threads: the next slices while the last are encoded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from inference.device import usable_threads
from inference.facts import InstanceFacts
from inference.volume import Slice, each_slice, read_slices

MOST_THREADS = 4
"""Decoders and numpy work without Python's lock, parsing headers does not: more threads would wait for one another."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One stored instance: its header's facts, its file, and the digest under which its encoding is remembered."""

    facts: InstanceFacts
    path: Path
    digest: str

    @property
    def frames(self) -> int:
        """Slices that decoding it gives."""
        return max(1, self.facts.number_of_frames or 1)


class Decoder:
    """Holds at most `ahead` slices that nobody has asked for yet; an instance of more frames is decoded when asked for.

    Such an instance is then given in pieces of at most half as many, one at a time.

    Not for use by several threads at once.
    """

    def __init__(self, *, ahead: int) -> None:
        self._ahead = ahead
        self._threads = ThreadPoolExecutor(min(MOST_THREADS, usable_threads()), thread_name_prefix="decode")
        self._begun: dict[str, Future[tuple[Slice, ...]]] = {}

    def begin(self, upcoming: Iterable[Stored]) -> None:
        """The first of `upcoming` are being decoded; what was begun before and is not among them is given up."""
        wanted: dict[str, Stored] = {}
        slices = 0
        for instance in upcoming:
            slices += instance.frames
            if slices > self._ahead:
                break
            wanted[instance.digest] = instance
        for digest in self._begun.keys() - wanted.keys():
            self._begun.pop(digest).cancel()
        for digest, instance in wanted.items():
            if digest not in self._begun:
                self._begun[digest] = self._threads.submit(read_slices, instance.path)

    def pieces(self, instance: Stored) -> Iterator[tuple[Slice, ...]]:
        """The instance's slices in order, as soon as they are decoded.

        Raises ``UnreadablePixels``; where a later frame is damaged, after some pieces.
        """
        begun = self._begun.pop(instance.digest, None)
        if begun is not None:
            yield begun.result()
            return
        slices = each_slice(instance.path)
        while piece := tuple(islice(slices, max(1, self._ahead // 2))):
            yield piece
