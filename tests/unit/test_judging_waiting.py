"""The simulated list waits as long as queueing theory says it must."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.errors import DataError
from training.judging.waiting import (
    Site,
    assumed_times,
    first_come,
    flagged_first,
    flagged_share,
    reading_times,
    simulate,
    wait_first_come,
    wait_flagged_first,
)

SITE = Site(prevalence=0.15, per_hour=6, reading_minutes=assumed_times(mean=8, spread=4))
PERFECT = {"scores": np.array([0.9] * 9 + [0.1] + [0.6] + [0.2] * 19), "bleeding": np.arange(30) < 10}
"""Sensitivity 0.9, specificity 0.95 at one half."""


def test_the_worked_example_of_triage_comes_out() -> None:
    """π = .15, s = .9, c = .95: 17.8 % of the studies are flagged, and 76 % of these bleed."""
    share = flagged_share(SITE, sensitivity=0.9, specificity=0.95)
    assert share == pytest.approx(0.1775)
    assert 0.15 * 0.9 / share == pytest.approx(0.76, abs=0.005)


def test_exponential_reading_times_give_the_waits_of_the_textbook() -> None:
    """M/M/1: the mean wait is ρ / (μ − λ). Quantiles of the exponential stand for it."""
    times = -np.log1p(-(np.arange(20_000) + 0.5) / 20_000) * 5
    site = Site(prevalence=0.1, per_hour=9.6, reading_minutes=tuple(times))
    assert first_come(site) == pytest.approx(0.8 / (1 / 5 - 9.6 / 60), rel=0.002)


def test_what_is_flagged_saves_the_others_pay() -> None:
    """The conservation law (Kleinrock 1965): with the same reading times, the mean over all studies stays."""
    high, low = flagged_first(SITE, flagged=0.2)
    assert 0.2 * high + 0.8 * low == pytest.approx(first_come(SITE))


def test_the_simulation_finds_the_formulas_waits() -> None:
    found = simulate(SITE, **PERFECT, threshold=0.5, studies=6000, replications=60, seed=1)  # type: ignore[arg-type]
    assert found.flagged == pytest.approx(0.1775)
    waits = found.waits
    every = waits["all"].first_come
    assert every.low - 0.5 < found.expected_first_come < every.high + 0.5
    assert every.value == pytest.approx(found.expected_first_come, rel=0.06)
    for group in ("bleeding, flagged", "clean, flagged"):
        assert waits[group].flagged_first.value == pytest.approx(found.expected_flagged, rel=0.05)
    for group in ("bleeding, not flagged", "clean, not flagged"):
        assert waits[group].flagged_first.value == pytest.approx(found.expected_unflagged, rel=0.1)
    assert waits["bleeding"].saved.low > 0
    assert waits["all"].saved.value == pytest.approx(0, abs=0.6)
    assert waits["bleeding, not flagged"].saved.value < 0, "who is missed waits longer for it"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.01, 9), st.floats(0.1, 9), st.booleans()), min_size=1, max_size=40),
)
def test_both_orders_are_what_a_reader_does_step_by_step(studies: list[tuple[float, float, bool]]) -> None:
    gaps, minutes, flags = (np.array(column) for column in zip(*studies, strict=True))
    arrivals = np.cumsum(gaps)
    for flagged, found in (
        (np.zeros(len(flags), bool), wait_first_come(arrivals, minutes)),
        (flags, wait_flagged_first(arrivals, minutes, flags)),
    ):
        left, clock, waits = set(range(len(arrivals))), 0.0, {}
        while left:
            there = [n for n in left if arrivals[n] <= clock]
            if not there:
                clock = min(arrivals[n] for n in left)
                continue
            taken = min(there, key=lambda n: (not flagged[n], n))
            waits[taken] = clock - arrivals[taken]
            clock += minutes[taken]
            left.remove(taken)
        assert found == pytest.approx([waits[n] for n in range(len(arrivals))], abs=1e-9)


def test_a_model_that_flags_nothing_changes_nothing() -> None:
    found = simulate(SITE, **PERFECT, threshold=2.0, studies=300, replications=5)  # type: ignore[arg-type]
    assert found.waits["all"].saved.value == pytest.approx(0, abs=1e-9)
    assert "bleeding, flagged" not in found.waits


def test_a_room_that_cannot_keep_up_is_refused() -> None:
    with pytest.raises(DataError, match=r"1\.07 of the time"):
        replace(SITE, per_hour=8)
    with pytest.raises(DataError, match="prevalence"):
        replace(SITE, prevalence=1.5)
    with pytest.raises(DataError, match="scores of scans"):
        simulate(SITE, scores=np.array([0.2]), bleeding=np.array([False]), threshold=0.5)


def test_reading_times_come_from_a_table_or_are_assumed(tmp_path: Path) -> None:
    table = tmp_path / "times.csv"
    table.write_text("minutes,reader\n4.5,A\n6,B\n\n")
    assert reading_times(table) == (4.5, 6.0)
    for text in ("minutes\n4.5\nlong\n", "minutes\n", ""):
        table.write_text(text)
        with pytest.raises(DataError, match="expected minutes"):
            reading_times(table)
    times = assumed_times(mean=8, spread=4)
    assert np.mean(times) == pytest.approx(8)
    assert np.std(times) == pytest.approx(4, rel=0.02)
