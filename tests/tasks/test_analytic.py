import math
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from hpo_ray.tasks.analytic import Branin, Hartmann6, Parabola
from hpo_ray.trainables import TrialContext
from hpo_ray.trainables.context import use_context

MINIMISER = dict(
    zip([f"x{j}" for j in range(1, 7)], (0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573), strict=True)
)


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
