"""Values as genes."""

from __future__ import annotations

import numpy as np
import pytest
from histories import MIXED

from hpo_ray.searchers.genes import gene_of, is_ordered, neighbour, reflect
from hpo_ray.space import Categorical, Fixed, Float, Int


def test_how_many_values() -> None:
    known = {name: domain.size for name, domain in MIXED.domains.items()}
    assert known == {
        "lr": None,
        "dropout": 7,
        "layers": 3,
        "units": 241,
        "batch": 4,
        "size": 4,
        "optimizer": 3,
        "momentum": None,
        "nesterov": 2,
        "epochs": 1,
    }
    assert Int(-(10**9), 10**9).size == 2 * 10**9 + 1


def test_what_is_ordered() -> None:
    assert [is_ordered(d) for d in (Float(0, 1), Int(0, 1), Fixed(1))] == [True, True, False]
    assert is_ordered(Categorical(("a", "b"), ordered=True)) and not is_ordered(Categorical(("a", "b")))


@pytest.mark.parametrize(
    ("domain", "values"),
    [
        (Int(3, 6), [3, 4, 5, 6]),
        (Int(3, 6, log=True), [3, 4, 5, 6]),
        (Int(32, 128, step=32), [32, 64, 96, 128]),
        (Float(0.0, 0.3, step=0.1), [0.0, 0.1, 0.2, 0.3]),
        (Categorical(("s", "m", "l"), ordered=True), ["s", "m", "l"]),
        (Categorical((True, False), ordered=True), [True, False]),
        (Int(0, 1), [0, 1]),
    ],
)
def test_neighbours_are_one_step_away(domain: Int, values: list[object]) -> None:
    """At an end the step goes the other way."""
    last = len(values) - 1
    for i, value in enumerate(values):
        assert neighbour(domain, value, up=True) == values[i + 1 if i < last else i - 1]
        assert neighbour(domain, value, up=False) == values[i - 1 if i else 1]


def test_a_gene_decodes_to_its_value_and_fills_its_interval() -> None:
    draws = np.random.default_rng(0).random(50)
    for domain in MIXED.domains.values():
        for u in (0.0, 0.1, 0.5, 0.77, 0.999):
            value = domain.from_unit(u)
            genes = [gene_of(domain, value, draw) for draw in (0.0, *draws, 1 - 2**-53)]
            assert all(0.0 <= gene <= 1.0 for gene in genes)
            if domain.size is None:
                assert genes == [domain.to_unit(value)] * 52
            else:
                assert all(domain.from_unit(gene) == value for gene in genes)
    assert gene_of(Categorical(("a", "b", "c", "d")), "b", 0.5) == 0.375
    assert gene_of(Categorical(("a", "b", "c", "d")), "b", 0.8) == pytest.approx(0.45)


def test_reflect() -> None:
    assert [reflect(u) for u in (0.0, 0.25, 1.0, 1.25, -0.25, 2.5, -1.5)] == [0.0, 0.25, 1.0, 0.75, 0.25, 0.5, 0.5]
