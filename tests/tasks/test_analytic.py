import math
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from hpo_ray.config import load
from hpo_ray.study import draft
from hpo_ray.tasks.analytic import Branin, BraninCurrin, Hartmann6, Mixed10, Parabola
from hpo_ray.trainables import TrialContext
from hpo_ray.trainables.context import use_context

MINIMISER = dict(
    zip([f"x{j}" for j in range(1, 7)], (0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573), strict=True)
)
BEST10 = {
    "x1": 1.0,
    "x2": 0.5,
    "rate": 0.01,
    "share": 0.35,
    "depth": 7,
    "units": 64,
    "quality": "high",
    "kind": "wave",
    "period": 4.0,
}


def losses(function, config, max_resource=1, steps=1):
    with use_context(TrialContext(max_resource=max_resource)):
        trial = function(config)
    return [trial.step()["loss"] for _ in range(steps)]


@pytest.mark.parametrize(("x", "value"), [(0.0, 4.0), (2.0, 0.0), (3.5, 2.25)])
def test_parabola(x, value):
    assert losses(Parabola, {"x": x}, max_resource=27, steps=3) == [value] * 3


@pytest.mark.parametrize("x", [(-math.pi, 12.275), (math.pi, 2.275), (3 * math.pi, 2.475)])
def test_branin_has_its_three_minima(x):
    # At the minima the square vanishes, cos x1 = -1, and 10 / 8π remains.
    assert losses(Branin, {"x1": x[0], "x2": x[1]}) == [pytest.approx(10 / (8 * math.pi), abs=1e-12)]
    assert 10 / (8 * math.pi) == pytest.approx(0.397887, abs=1e-6)


def test_branin_elsewhere():
    # (0 - 0 + 0 - 6)^2 + 10 (1 - 1 / 8π) + 10
    assert losses(Branin, {"x1": 0.0, "x2": 0.0}) == [pytest.approx(56 - 10 / (8 * math.pi), rel=1e-12)]


def test_hartmann6_has_its_minimum():
    [value] = losses(Hartmann6, MINIMISER)
    assert value == pytest.approx(-3.32237, abs=1e-5)
    for name in MINIMISER:
        for step in (-0.01, 0.01):
            assert losses(Hartmann6, {**MINIMISER, name: MINIMISER[name] + step})[0] > value


def test_hartmann6_fidelity():
    # At x = P_3 the third exponential is 1. The exponents of the others, sum_j A_ij (P_3j - P_ij)^2, are below:
    # 1.60065, 6.51010 and 11.18174.
    config = {f"x{j}": p for j, p in enumerate((0.2348, 0.1451, 0.3522, 0.2883, 0.3047, 0.6650), start=1)}
    e1 = math.exp(
        -(10 * 0.1036**2 + 3 * 0.0245**2 + 17 * 0.2047**2 + 3.5 * 0.2759**2 + 1.7 * 0.5236**2 + 8 * 0.0764**2)
    )
    e2 = math.exp(
        -(0.05 * 0.0019**2 + 10 * 0.2684**2 + 17 * 0.4785**2 + 0.1 * 0.0853**2 + 8 * 0.2043**2 + 14 * 0.3341**2)
    )
    e4 = math.exp(
        -(17 * 0.1699**2 + 8 * 0.7377**2 + 0.05 * 0.521**2 + 10 * 0.286**2 + 0.1 * 0.1956**2 + 14 * 0.6269**2)
    )
    # z = 1/4, 2/4, 3/4, 1: alpha_i - 0.1 (1 - z)
    expected = [-((1.0 - d) * e1 + (1.2 - d) * e2 + (3.0 - d) + (3.2 - d) * e4) for d in (0.075, 0.05, 0.025, 0.0)]
    assert losses(Hartmann6, config, max_resource=4, steps=5) == pytest.approx([*expected, expected[-1]], rel=1e-12)


@pytest.mark.parametrize(
    ("name", "function", "minimiser"),
    [
        ("parabola", Parabola, {"x": 2.0}),
        ("branin", Branin, {"x1": math.pi, "x2": 2.275}),
        ("hartmann6", Hartmann6, MINIMISER),
        ("branin_currin", BraninCurrin, {"x1": (math.pi + 5) / 15, "x2": 2.275 / 15}),
        ("mixed10", Mixed10, BEST10),
    ],
)
def test_the_optimum_of_its_task_is_that_of_the_function(name, function, minimiser):
    optimum = OmegaConf.load(Path(__file__).parents[2] / "conf" / "task" / f"{name}.yaml").task.optimum
    value = function(dict(minimiser)).step()["loss"]
    # The minimisers are given to some digits; no value near them is below the optimum.
    assert optimum - 1e-12 <= value <= optimum + 1e-6


def test_a_trial_of_no_study_is_at_full_fidelity():
    assert Hartmann6(dict(MINIMISER)).step()["loss"] == pytest.approx(-3.32237, abs=1e-5)


def test_checkpoint_and_reset(tmp_path):
    with use_context(TrialContext(max_resource=9)):
        trial, other = Hartmann6(dict(MINIMISER)), Hartmann6(dict(MINIMISER))
        fresh = Hartmann6({**MINIMISER, "x1": 0.5}).step()
        trial.step(), trial.step()
        other.load_checkpoint(trial.save_checkpoint(str(tmp_path)))
        assert trial.step() == other.step()
        assert trial.reset_config({**MINIMISER, "x1": 0.5}) is True
        assert trial.step() == fresh


# Several metrics.


def both(x1, x2):
    result = BraninCurrin({"x1": x1, "x2": x2}).step()
    assert result["loss"] == result["branin"]
    return result["branin"], result["currin"]


def test_branin_currin_by_hand():
    # x1 = 1/3 and x2 = 0 are Branin's (0, 0). Currin's first factor is 1 there, and its polynomials, times 27, are
    # 2300 + 5700 + 18828 + 1620 = 28448 and 100 + 1500 + 36 + 540 = 2176.
    assert both(1 / 3, 0.0) == pytest.approx((56 - 10 / (8 * math.pi), 28448 / 2176), rel=1e-12)
    assert both(0.0, 1e-300)[1] == both(0.0, 0.0)[1] == 3.0
    # (1 - e^-1) 60 / 20; Branin at (-5, 7.5): 7.5 - 127.5 / 4π² - 25 / π - 6.
    valley = 1.5 - 127.5 / (4 * math.pi**2) - 25 / math.pi
    expected = valley**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(5) + 10
    assert both(0.0, 0.5) == pytest.approx((expected, 3 * (1 - math.exp(-1))), rel=1e-12)


def hypervolume(points, reference):
    """The area that is dominated by points (value, value), both smaller the better, up to the reference."""
    area, lowest = 0.0, reference[1]
    for first, second in sorted(points):
        if first < reference[0] and second < lowest:
            area += (reference[0] - first) * (lowest - second)
            lowest = second
    return area


def test_the_hypervolume_of_branin_currin_is_what_is_said():
    n = 801
    trial, grid = BraninCurrin({"x1": 0.0, "x2": 0.0}), np.linspace(0.0, 1.0, n).tolist()
    points = []
    for x1 in grid:
        for x2 in grid:
            trial.prepare({"x1": x1, "x2": x2})
            points.append(tuple(trial.metrics(1.0)[name] for name in ("branin", "currin")))
    found = hypervolume(points, (18.0, 6.0))
    # Every point lies within half a step of a point of the grid in each input, so that the grid dominates all but a
    # strip of width d1 and d2 along the front, whose area is at most d1 (6 - 1.18) + d2 (18 - 0.39). Where Branin is
    # below 19, the valley's |v| is at most sqrt(19 - 10 + 9.6) < 4.32, and |dv/dx1| at most 2.89, all inputs times 15.
    # Currin's slopes are at most 105 (at x1 = 0, 2092 / 20 - 60 * 4 / 400 = 104) and 13.8 * 8 e^-2 < 15.
    half = 0.5 / (n - 1)
    d1, d2 = half * 15 * (2 * 4.32 * 2.89 + 9.61 + 2 * 4.32), half * (105 + 15)
    assert 59.36011874867746 - (d1 * 4.82 + d2 * 17.61) < found < 59.36011874867746


# A function of every kind of hyperparameter.


def mixed10(steps=1, max_resource=1, **changes):
    config = {name: value for name, value in {**BEST10, **changes}.items() if value is not None}
    return losses(Mixed10, config, max_resource, steps)


def test_mixed10_has_its_minimum():
    assert mixed10() == [pytest.approx(0.0, abs=1e-15)]


@pytest.mark.parametrize(
    ("changes", "loss"),
    [
        # (x1 - 1)^2 / 10 + (0.5 - x1^2 / 2)^2 / 4, and the period's best is 3 + x1.
        ({"x1": -1.0}, 0.4 + (4 - 3 + 1) ** 2 / 20),
        ({"x2": -0.5}, 1 / 4),
        ({"rate": 1e-4}, 2**2 / 4),
        ({"units": 256}, 2**2 / 20 + 0.5**2 / 4),
        ({"units": 256, "rate": 10**-2.5}, 2**2 / 20),
        ({"depth": 11}, 4**2 / 40 + 4 * 0.2**2),
        ({"depth": 11, "share": 0.55}, 4**2 / 40),
        ({"share": 0.85}, 4 * 0.5**2),
        ({"quality": "low"}, 0.4),
        ({"quality": "best"}, 0.1),
        ({"period": 6.0}, 2**2 / 20),
        ({"kind": "plain", "period": None}, 0.5),
        ({"kind": "tree", "period": None, "leaves": 15}, 0.1),
        ({"kind": "tree", "period": None, "leaves": 5}, 0.1 + 10**2 / 100),
    ],
)
def test_mixed10_by_hand(changes, loss):
    assert mixed10(**changes) == [pytest.approx(loss, rel=1e-12)]


def test_mixed10_is_seen_better_with_each_step():
    # u = 6, depth = 7, r = -2: (6 + 3.5 + 2) / 10 = 1.15, times (1 - z)^2 at z = 1/4, 2/4, 3/4, 1, 1.
    expected = [1.15 * part for part in (9 / 16, 4 / 16, 1 / 16, 0.0, 0.0)]
    assert mixed10(steps=5, max_resource=4) == pytest.approx(expected, abs=1e-12)


def test_mixed10_size():
    assert Mixed10(dict(BEST10)).step()["size"] == math.log2(64 * 7)
    tree = {**BEST10, "kind": "tree", "leaves": 16}
    del tree["period"]
    assert Mixed10(tree).step()["size"] == math.log2(64 * 7 * 16)


def test_the_space_of_mixed10():
    """Every kind of domain; conditions; finite values at random; cheap ranks are much like the full ones."""
    drafted = draft(load(["task=mixed10"]))
    space, random = drafted.space, np.random.default_rng(0)
    assert space.check(BEST10) == BEST10 and len(space) == 10
    trial, cheap, full, sizes = Mixed10(dict(BEST10)), [], [], []
    for _ in range(2000):
        config = space.sample(random)
        assert ("period" in config, "leaves" in config) == (config["kind"] == "wave", config["kind"] == "tree")
        trial.prepare(config)
        cheap.append(trial.value(1 / 27)), full.append(trial.value(1.0)), sizes.append(trial.metrics(1.0)["size"])
    assert np.isfinite(cheap).all() and min(full) >= 0 and max(sizes) < drafted.task.reference["size"]
    assert 0 < np.mean(np.array(full) < drafted.task.reference["loss"]) < 1
    # The largest bias is (10 + 6 + 5) / 10, the smallest (3 + 0.5 + 0) / 10.
    assert 0.35 * (26 / 27) ** 2 <= min(np.subtract(cheap, full)) < max(np.subtract(cheap, full)) <= 2.1
    ranks = [np.argsort(np.argsort(values)) for values in (cheap, full)]
    assert 0.9 < np.corrcoef(ranks)[0, 1] < 0.99
    best = [set(np.argsort(values)[:200].tolist()) for values in (cheap, full)]
    assert 100 < len(best[0] & best[1]) < 200
