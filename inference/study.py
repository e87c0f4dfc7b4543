"""One study from its stored files to a result: select, decode, check, encode, decide.

Slices can be encoded long before the study is complete; then only the check and the sequence part are left to do.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.combination import Combination, combine
from inference.decoding import Decoder, Stored
from inference.engine import Engine
from inference.errors import UnreadablePixels
from inference.headcheck import check_head
from inference.metadata import HeaderModel
from inference.neighbours import Key, Neighbourhood, batched
from inference.novelty import measure
from inference.place import SlicePlace, place_of
from inference.reading import watched, where_bleeding
from inference.recent import Recent
from inference.result import Completeness, ModelReading, Outcome, SeriesChoice, StudyResult
from inference.series import Criteria, Plane, Stack, select
from inference.volume import Slice

THUMBNAIL_STEP = 4
"""The head check looks at every fourth pixel of every fourth row: enough for fractions and outlines."""

UNDECODABLE_KEPT = 10_000

ELSEWHERE: Key = ("", None)
"""A slice that is not here."""

WIDE = 1.5
"""A step of so many of the smallest has room for another slice."""

MOST_UNREADABLE = 0.2
"""More unreadable slices than this, and the series is not read at all."""


@dataclass(frozen=True, kw_only=True)
class EncodedSlice:
    """What is kept of a slice once it is encoded: where it lies, what it roughly looks like, and its descriptors.

    `thumbnail` is the slice with every fourth pixel; `descriptors` maps the name of each model that looks at no
    neighbours to its vector (d,). Those of the others are in the reader's `Neighbourhood`.
    """

    place: SlicePlace
    thumbnail: Slice
    descriptors: dict[str, NDArray[np.floating[Any]]]

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return self.thumbnail.hu.nbytes + sum(vector.nbytes for vector in self.descriptors.values())


class EncodedCache(Recent[str, tuple[EncodedSlice, ...]]):
    """The encodings of recent instances by digest, within `limit` bytes; the longest unused leave first."""

    def __init__(self, *, limit: int) -> None:
        super().__init__(limit=limit, size=_size)


def _size(slices: tuple[EncodedSlice, ...]) -> int:
    return sum(encoded.nbytes for encoded in slices)


class StudyReader:
    """Reads studies with the models of one engine.

    Parameters
    ----------
    combination : Combination
        Which findings make a study positive.
    headers : sequence of HeaderModel
        Models that look at headers only; they read beside the engine.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        criteria: Criteria,
        combination: Combination,
        cache: EncodedCache,
        headers: Sequence[HeaderModel] = (),
    ) -> None:
        self._engine = engine
        self._criteria = criteria
        self._combination = combination
        self._cache = cache
        self._headers = headers
        self._neighbourhood = Neighbourhood(engine)
        self._undecodable: dict[str, None] = {}
        self._decoder = Decoder(ahead=2 * engine.chunk)

    def encode_arrivals(self, instances: Sequence[Stored], *, limit: int) -> int:
        """Up to `limit` instances of a study still arriving that may be read later are encoded; returns how many.

        Instances that cannot be decoded are left for `read`, which names them.
        """
        stacks = select([i.facts for i in instances], self._criteria, arriving=True).stacks
        digests = {i.facts.sop_instance_uid: i.digest for i in instances}
        orders = [_likely(stack, digests) for stack in stacks]
        encoded, _ = self._encode(self._to_encode(instances, stacks)[:limit], orders)
        return len(encoded)

    def to_encode(self, instances: Sequence[Stored]) -> list[Stored]:
        """Those of a study's instances that `read` would have to encode first, as far as they can be decoded."""
        return self._to_encode(instances, select([i.facts for i in instances], self._criteria).stacks)

    def _to_encode(self, instances: Sequence[Stored], stacks: Iterable[Stack]) -> list[Stored]:
        wanted = {uid for stack in stacks for uid in stack.sop_instance_uids}
        fresh = [i for i in instances if i.facts.sop_instance_uid in wanted and i.digest not in self._cache]
        return [i for i in fresh if i.digest not in self._undecodable]

    def read(
        self,
        *,
        study_uid: str,
        revision: int,
        instances: Sequence[Stored],
        completeness: Completeness,
        following: Sequence[Stored] = (),
        progress: Callable[[int], None] = lambda _: None,
    ) -> StudyResult:
        """The statement on a study: positive, negative, or *not analysed* with its reason.

        Parameters
        ----------
        following : sequence of Stored
            What will be read next: it is decoded meanwhile, and fills up the last batch. Nothing in it can fail this
            reading.
        progress : callable
            Called with the number of instances encoded since the last call.
        """
        started = time.perf_counter()
        by_uid = {instance.facts.sop_instance_uid: instance for instance in instances}
        selection = select([instance.facts for instance in instances], self._criteria)
        choices = list(selection.choices)
        said: list[str] = []
        for stack in selection.stacks:
            chosen = _choice_of(stack, choices)
            reading = self._read_stack(stack, by_uid, following, progress)
            if isinstance(reading, _Unfit):
                choices[choices.index(chosen)] = replace(
                    chosen, chosen=False, code=reading.code, reason=f"Not read: {reading.reason}."
                )
                said.append(reading.reason)
                continue
            outcome, reason = combine(reading.readings, self._combination)
            return StudyResult(
                study_uid=study_uid,
                revision=revision,
                outcome=outcome,
                reason=reason,
                completeness=_with_missing(completeness, reading.unreadable),
                series=tuple(choices),
                readings=reading.readings,
                warnings=reading.unreadable,
                timings_ms={"read": (time.perf_counter() - started) * 1000, **reading.timings_ms},
            )
        return StudyResult(
            study_uid=study_uid,
            revision=revision,
            outcome=Outcome.NOT_ANALYSED,
            reason=_why_not(said, choices),
            completeness=completeness,
            series=tuple(choices),
            timings_ms={"read": (time.perf_counter() - started) * 1000},
        )

    def _read_stack(
        self,
        stack: Stack,
        by_uid: Mapping[str, Stored],
        following: Sequence[Stored],
        progress: Callable[[int], None],
    ) -> _StackReading | _Unfit:
        started = time.perf_counter()
        wanted = {uid: by_uid[uid] for uid in stack.sop_instance_uids}
        # Held here as well as in the cache: a large study must not lose its own slices to the cache's limit.
        held = {uid: known for uid, i in wanted.items() if (known := self._cache.get(i.digest)) is not None}
        missing = [i for uid, i in wanted.items() if uid not in held]
        fresh, unreadable = self._encode(missing, [self._expected(stack, by_uid)], following, progress)
        slices = _in_order(stack.in_order, held | fresh)
        encoded_ms = (time.perf_counter() - started) * 1000
        if len(slices) < (1 - MOST_UNREADABLE) * len(stack.in_order):
            return _Unfit(code="unreadable_pixels", reason=unreadable[0])
        head = check_head([encoded.thumbnail for encoded in slices])
        if not head.ok:
            return _Unfit(code="not_a_head", reason=head.reason)
        places = [encoded.place for encoded in slices]
        settling = time.perf_counter()
        descriptors = {
            name: np.stack([encoded.descriptors[name] for encoded in slices]) for name in slices[0].descriptors
        } | self._among(places, by_uid)
        decided = time.perf_counter()
        encoded_ms += (decided - settling) * 1000
        planes = {(plane.facts.sop_instance_uid, plane.frame): plane for plane in stack.in_order}
        measures = measure([encoded.thumbnail for encoded in slices], head)
        readings = self._engine.decide(descriptors, places)
        readings = tuple(self._watched(reading, descriptors[reading.name], measures) for reading in readings)
        readings += tuple(model.read(planes, places) for model in self._headers)
        readings = tuple(self._heard(reading, readings, places) for reading in readings)
        return _StackReading(
            readings=readings,
            unreadable=tuple(unreadable),
            timings_ms={"encode": encoded_ms, "decide": (time.perf_counter() - decided) * 1000},
        )

    def _heard(
        self, reading: ModelReading, readings: Sequence[ModelReading], places: Sequence[SlicePlace]
    ) -> ModelReading:
        """The reading as far as it counts: that of a model that knows only slices that bleed needs the others."""
        card = self._engine.cards.get(reading.name)
        if card is None or not card.bleeding_only:
            return reading
        return where_bleeding(card, reading, [other for other in readings if other is not reading], places)

    def _expected(self, stack: Stack, by_uid: Mapping[str, Stored]) -> list[Key]:
        """The slices from feet to head, without those of which it is known that they cannot be decoded."""
        keys = [(by_uid[plane.facts.sop_instance_uid].digest, plane.frame) for plane in stack.in_order]
        return [key for key in keys if key[0] not in self._undecodable]

    def _among(
        self, places: Sequence[SlicePlace], by_uid: Mapping[str, Stored]
    ) -> dict[str, NDArray[np.floating[Any]]]:
        """Descriptors (s, d) of the slices of a scan, from feet to head, for the models that look at neighbours."""
        stored = {by_uid[place.sop_instance_uid].digest: by_uid[place.sop_instance_uid] for place in places}

        def again(keys: Sequence[Key]) -> dict[Key, dict[str, NDArray[np.floating[Any]]]]:
            digests = dict.fromkeys(digest for digest, _ in keys)
            slices = ((d, one) for d in digests for few in self._decoder.pieces(stored[d]) for one in few)
            wanted = {(d, one.frame): one for d, one in slices if (d, one.frame) in keys}
            images = self._engine.encode(list(wanted.values()), among=True)
            return {key: {name: rows[row] for name, rows in images.items()} for row, key in enumerate(wanted)}

        order = [(by_uid[place.sop_instance_uid].digest, place.frame) for place in places]
        return self._neighbourhood.rows(order, again)

    def _watched(self, reading: ModelReading, descriptors: NDArray[Any], measures: Mapping[str, float]) -> ModelReading:
        """The reading with what its model's guard says of the scan, where the model has one."""
        watch = self._engine.watches.get(reading.name)
        if watch is None:
            return reading
        marked = bool(self._engine.cards[reading.name].preprocessing.blank_below)
        return watched(reading, watch.judge(measures, descriptors, blank_marked=marked))

    def _encode(
        self,
        instances: Sequence[Stored],
        orders: Sequence[Sequence[Key]],
        following: Sequence[Stored] = (),
        progress: Callable[[int], None] = lambda _: None,
    ) -> tuple[dict[str, tuple[EncodedSlice, ...]], list[str]]:
        """The encoded slices by SOP Instance UID, also in the cache; and a sentence for each that could not be decoded.

        `orders` are the scans they belong to: where they lie beside one another.
        Memory stays bounded: the pixels of one batch are held at a time, and as many decoded ahead, whatever the number
        of instances and of the frames in them.
        """
        encoded: dict[str, tuple[EncodedSlice, ...]] = {}  # by digest
        unreadable: list[str] = []
        batch = _Batch()
        waiting, left = deque([*instances, *(i for i in following if i.frames == 1)]), len(instances)
        while left > 0 or (batch.slices and waiting):
            self._decoder.begin(waiting)
            instance = waiting.popleft()
            left -= 1
            if left < 0:
                self._invite(instance, batch)
            else:
                try:
                    for piece in self._decoder.pieces(instance):
                        batch.own.append((instance, piece))
                        if batch.slices >= self._engine.chunk:
                            batch = self._emptied(batch, encoded, orders, progress)
                except UnreadablePixels as error:
                    unreadable.append(f"image {instance.facts.instance_number} cannot be decoded: {error}")
                    self._remember_undecodable(instance.digest)
                    # Half an instance is none.
                    encoded.pop(instance.digest, None)
                    batch = replace(batch, own=[(i, piece) for i, piece in batch.own if i is not instance])
            if batch.slices >= self._engine.chunk or (batch.slices and left <= 0 and not waiting):
                batch = self._emptied(batch, encoded, orders, progress)
        self._decoder.begin(waiting)
        return {i.facts.sop_instance_uid: encoded[i.digest] for i in instances if i.digest in encoded}, unreadable

    def _invite(self, instance: Stored, batch: _Batch) -> None:
        """A slice of a later study joins the batch; one that cannot is left for its own study to speak of."""
        try:
            batch.guests.extend([(instance, piece) for piece in self._decoder.pieces(instance)])
        except Exception:  # noqa: BLE001 another study's trouble, which its own reading meets again and names
            self._remember_undecodable(instance.digest)

    def _remember_undecodable(self, digest: str) -> None:
        """So that it is not tried again with every look at the arrivals."""
        self._undecodable[digest] = None
        if len(self._undecodable) > UNDECODABLE_KEPT:
            del self._undecodable[next(iter(self._undecodable))]

    def _emptied(
        self,
        batch: _Batch,
        encoded: dict[str, tuple[EncodedSlice, ...]],
        orders: Sequence[Sequence[Key]],
        progress: Callable[[int], None],
    ) -> _Batch:
        """The next batch, empty; the slices of this one are encoded, those of instances that are whole also cached."""
        try:
            pieces = self._encoded_together([*batch.own, *batch.guests], orders)
        except Exception:
            if not batch.guests:
                raise
            pieces = self._encoded_together(batch.own, orders)
        whole = 0
        for (instance, _), piece in zip(batch.own, pieces, strict=False):
            so_far = encoded[instance.digest] = (*encoded.get(instance.digest, ()), *piece)
            if len(so_far) == instance.frames:
                self._cache.put(instance.digest, so_far)
                whole += 1
        for (instance, _), piece in zip(batch.guests, pieces[len(batch.own) :], strict=False):
            self._cache.put(instance.digest, piece)
        progress(whole)
        return _Batch()

    def _encoded_together(
        self, batch: Sequence[tuple[Stored, tuple[Slice, ...]]], orders: Sequence[Sequence[Key]]
    ) -> list[tuple[EncodedSlice, ...]]:
        """One tuple for each piece of the batch. Few images wait for their neighbours, however many come."""
        done: list[list[EncodedSlice]] = [[] for _ in batch]
        pieces = ((place, i.digest, piece) for place, (i, slices) in enumerate(batch) for piece in slices)
        for few in batched(pieces, self._engine.chunk):
            rows = self._engine.encode([piece for _, _, piece in few])
            for row, (place, digest, piece) in enumerate(few):
                own = {name: of[row].copy() for name, of in rows.items()}
                self._neighbourhood.keep((digest, piece.frame), {name: own.pop(name) for name in self._engine.reach})
                done[place].append(_encoded(piece, own))
            for order in orders:
                self._neighbourhood.advance(order, [(digest, piece.frame) for _, digest, piece in few])
        return [tuple(slices) for slices in done]


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """Decoded pieces of instances to be encoded together: a study's own, and those of later studies that fill it up."""

    own: list[tuple[Stored, tuple[Slice, ...]]] = field(default_factory=list)
    guests: list[tuple[Stored, tuple[Slice, ...]]] = field(default_factory=list)

    @property
    def slices(self) -> int:
        return sum(len(slices) for _, slices in (*self.own, *self.guests))


@dataclass(frozen=True, kw_only=True)
class _StackReading:
    readings: tuple[ModelReading, ...]
    unreadable: tuple[str, ...]
    timings_ms: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class _Unfit:
    code: str
    reason: str


def thumbnail(piece: Slice) -> Slice:
    """The slice with every fourth pixel of every fourth row: what is kept of it once it is encoded."""
    small = np.ascontiguousarray(piece.hu[::THUMBNAIL_STEP, ::THUMBNAIL_STEP])
    rows, columns = piece.pixel_spacing
    return replace(piece, hu=small, pixel_spacing=(rows * THUMBNAIL_STEP, columns * THUMBNAIL_STEP))


def _encoded(piece: Slice, descriptors: dict[str, NDArray[np.floating[Any]]]) -> EncodedSlice:
    return EncodedSlice(place=place_of(piece), thumbnail=thumbnail(piece), descriptors=descriptors)


def _in_order(planes: Iterable[Plane], held: Mapping[str, tuple[EncodedSlice, ...]]) -> list[EncodedSlice]:
    """The encoded slices of `planes`, as far as they could be decoded."""
    return [
        encoded
        for plane in planes
        for encoded in held.get(plane.facts.sop_instance_uid, ())
        if encoded.place.frame == plane.frame
    ]


def _likely(stack: Stack, digests: Mapping[str, str]) -> list[Key]:
    """The slices of a stack that is still arriving, from feet to head, `ELSEWHERE` between those with room for another.

    Others may come at either end as well: what lies there is not worth encoding yet.
    """
    positions = stack.geometry.positions_mm
    steps = [above - below for below, above in pairwise(positions)]
    keys: list[Key] = [ELSEWHERE]
    for plane, step in zip(stack.in_order, [*steps, None], strict=True):
        keys.append((digests[plane.facts.sop_instance_uid], plane.frame))
        if step is None or step > WIDE * min(steps):
            keys.append(ELSEWHERE)
    return keys


def _choice_of(stack: Stack, choices: Sequence[SeriesChoice]) -> SeriesChoice:
    return next(choice for choice in choices if choice.series_uid == stack.head.series_uid)


def _with_missing(completeness: Completeness, unreadable: Sequence[str]) -> Completeness:
    if not unreadable:
        return completeness
    return replace(completeness, complete=False, missing=(*completeness.missing, *unreadable))


def _why_not(said: Sequence[str], choices: Sequence[SeriesChoice]) -> str:
    """Why nothing was read, in one sentence."""
    if said:
        return f"not analysed: {said[0]}"
    if not choices:
        return "not analysed: the study holds no images"
    reasons = dict.fromkeys(choice.reason.removeprefix("Not read: ").rstrip(".") for choice in choices)
    return f"not analysed: no series can be read ({'; '.join(list(reasons)[:3])})"
