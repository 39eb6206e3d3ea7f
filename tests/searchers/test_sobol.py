"""The Sobol sequence: known points, evenness, and a suggestion that is a function of seed and number."""

from __future__ import annotations

import numpy as np
import pytest

from hpo_ray.searchers import SobolCore
from hpo_ray.space import Float, Space

CUBE = Space({"x": Float(0.0, 1.0), "y": Float(0.0, 1.0)})


def points(core: SobolCore, number: int) -> np.ndarray:
    return np.array([list(core.propose(i).config.values()) for i in range(number)])


def test_the_first_points_are_the_known_ones() -> None:
    """Without scrambling: Joe and Kuo's sequence, here its first eight points in two dimensions."""
    known = [(0, 0), (0.5, 0.5), (0.75, 0.25), (0.25, 0.75), (0.375, 0.375), (0.875, 0.875), (0.625, 0.125)]
    assert points(SobolCore(CUBE, scramble=False), 7).tolist() == [list(p) for p in known]


@pytest.mark.parametrize("seed", [0, 1])
def test_each_power_of_two_is_even(seed: int) -> None:
    """Of 2^k scrambled points each of 2^k intervals has exactly one, in each dimension."""
    drawn = points(SobolCore(CUBE, seed=seed), 256)
    for dimension in (0, 1):
        assert sorted(np.floor(drawn[:, dimension] * 256).astype(int)) == list(range(256))


def test_a_suggestion_is_a_function_of_seed_and_number() -> None:
    core = SobolCore(CUBE, seed=3)
    forwards = [core.propose(i).config for i in range(200)]
    backwards = [SobolCore(CUBE, seed=3).propose(i).config for i in (199, 64, 63, 0)]
    assert backwards == [forwards[i] for i in (199, 64, 63, 0)]
    assert SobolCore(CUBE, seed=4).propose(0).config != forwards[0]


def test_fixed_values_take_no_dimension_and_conditions_hold() -> None:
    space = Space({"a": 3, "x": Float(0.0, 1.0), "kind": ["p", "q"], "z": Float(0.0, 1.0, when={"kind": "q"})})
    core = SobolCore(space, initial=[{"x": 0.1, "kind": "p"}])
    first = core.suggest(0)
    assert first is not None and first.config == {"a": 3, "x": 0.1, "kind": "p"}
    for number in range(1, 65):
        config = core.propose(number).config
        assert space.check(config) == config and ("z" in config) == (config["kind"] == "q")
