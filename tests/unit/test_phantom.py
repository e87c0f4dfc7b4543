"""The phantom: the same study from the same seed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from training.sources.phantom import REAL, make_study

SMALL = replace(REAL, size=96, slices=14, subplanes=2)


def test_the_same_seed_makes_the_same_study_to_the_bit() -> None:
    one, two = (make_study(seed=3, spec=SMALL) for _ in range(2))
    assert np.array_equal(one.hu, two.hu)
    assert np.array_equal(one.masks, two.masks)
    assert np.array_equal(one.labels, two.labels)
    assert np.array_equal(one.positions, two.positions)
    assert one.truth == two.truth


def test_another_seed_makes_another_head() -> None:
    assert not np.array_equal(make_study(seed=3, spec=SMALL).hu, make_study(seed=4, spec=SMALL).hu)


def test_an_unknown_subtype_is_refused() -> None:
    with pytest.raises(ValueError, match="extradural"):
        make_study(seed=1, spec=SMALL, subtypes=("extradural",))
