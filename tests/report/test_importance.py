"""Importances of functions whose answer is known, and what is said where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hand_made import at_once, study

from hpo_ray.errors import StudyError
from hpo_ray.report.importance import Importances, importance, importances, section, unit_of
from hpo_ray.report.optuna_study import compared
from hpo_ray.report.parts import Plot, Words
from hpo_ray.report.subject import Subject


@pytest.fixture(autouse=True)
def _few_repetitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three show as much as ten, in less time."""
    monkeypatch.setattr("hpo_ray.report.importance.REPEATS", 3)


def drawn(folder: Path, function: Callable[[dict[str, Any]], float], trials: int = 60) -> Subject:
    """A study of random points in three hyperparameters."""
    rng = np.random.default_rng(0)
    configs = [
        {"x": float(x), "log": float(10 ** (4 * y - 4)), "kind": str(kind)}
        for x, y, kind in zip(rng.random(trials), rng.random(trials), rng.choice(["a", "b", "c"], trials), strict=True)
    ]
    return study(folder / "s", at_once(configs, [function(config) for config in configs]))


def of(subject: Subject) -> Importances:
    trials = compared(subject)
    assert trials is not None
    return importances(trials)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("x", lambda c: (c["x"] - 0.3) ** 2),
        ("log", lambda c: abs(np.log10(c["log"]) + 3.0)),
        ("kind", lambda c: {"a": 0.0, "b": 1.0, "c": 3.0}[c["kind"]]),
    ],
)
def test_a_function_of_one_of_three_gives_it_all(
    tmp_path: Path, name: str, function: Callable[[dict[str, Any]], float]
) -> None:
    found = of(drawn(tmp_path, function))
    assert found.names[0] == name
    assert found.fanova is not None and found.ped_anova is not None and found.explained is not None
    assert found.fanova.middle[name] > 0.95 and found.explained > 0.95
    assert found.ped_anova.middle[name] > 0.65, "it smooths, and sees chance in six trials"
    for measure in found.measures:
        assert all(measure.low[n] <= measure.middle[n] <= measure.high[n] for n in found.names)
        assert sum(measure.middle.values()) == pytest.approx(1.0)


def test_an_order_is_claimed_only_where_all_repetitions_agree(tmp_path: Path) -> None:
    subject = drawn(tmp_path, lambda c: c["x"] + (np.log10(c["log"]) + 4) / 4)
    made = section(subject)
    assert made is not None
    plot, words, _ = made.parts
    assert isinstance(plot, Plot) and isinstance(words, Words)
    assert "60 trials for 3 hyperparameters: at least ten each" in words.text
    for measure in of(subject).measures:
        first, second, _ = sorted(measure.middle, key=lambda name: -measure.middle[name])
        claimed = measure.low[first] > measure.high[second]
        assert (f"By {measure.name}, {first} and {second} could change places." in words.text) is not claimed
    assert "could change places" in words.text
    assert plot.name == "importance" and "60 trials at step 1." in plot.caption


def test_few_trials_are_called_a_hint(tmp_path: Path) -> None:
    made = section(drawn(tmp_path, lambda c: c["x"], trials=12))
    assert made is not None and isinstance(made.parts[1], Words)
    assert "12 trials for 3 hyperparameters: fewer than the 30" in made.parts[1].text
    assert "The best tenth are 2 trials, and PED-ANOVA wants five." in made.parts[1].text


def test_where_the_measures_disagree_it_is_said(tmp_path: Path) -> None:
    # Variance is all of x, which is bad below 0.5; who is best among the others is for y alone to say.
    rng = np.random.default_rng(1)
    configs = [{"x": float(x), "y": float(y)} for x, y in rng.random((100, 2))]
    values = [100.0 if c["x"] < 0.2 else c["y"] for c in configs]
    made = section(study(tmp_path / "s", at_once(configs, values)))
    assert made is not None and isinstance(made.parts[1], Words)
    assert "The two disagree on x, y: in no repetition do they meet." in made.parts[1].text


def test_the_same_study_gives_the_same_numbers(tmp_path: Path) -> None:
    subject = drawn(tmp_path, lambda c: c["x"], trials=20)
    assert of(subject) is of(subject), "computed once"
    assert of(subject) == of(Subject.of(subject.folder))


def test_interactions_are_what_each_alone_does_not_explain(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    configs = [{"x": float(x), "y": float(y)} for x, y in rng.uniform(-1, 1, (100, 2))]
    found = of(study(tmp_path / "s", at_once(configs, [c["x"] * c["y"] for c in configs])))
    assert found.explained is not None and found.explained < 0.6, "none in truth; a small forest sees chance effects"


def test_a_hyperparameter_of_some_trials_only_is_none_of_fanovas(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    configs = [
        {"kind": "a", "x": float(x), "y": float(x) / 2} if i % 2 else {"kind": "b", "x": float(x)}
        for i, x in enumerate(rng.random(40))
    ]
    subject = study(tmp_path / "s", at_once(configs, [c["x"] for c in configs]))
    found = of(subject)
    assert found.conditional == ("y",) and found.fanova is not None and set(found.fanova.middle) == {"kind", "x"}
    assert found.ped_anova is not None and set(found.ped_anova.middle) == {"kind", "x", "y"}
    made = section(subject)
    assert made is not None and isinstance(made.parts[0], Plot)
    assert "Not all trials have y: of it fANOVA can't tell, so it comes last." in made.parts[0].caption


@pytest.mark.parametrize(
    ("configs", "values", "why"),
    [
        ([{"x": i, "y": -i} for i in range(9)], range(9), "Importances need 10 trials at one resource."),
        ([{"x": i, "y": -i} for i in range(20)], [1.0] * 20, "All trials have the same loss."),
        ([{"x": i, "y": 1} for i in range(20)], range(20), "x alone differs: nothing to weigh it against."),
    ],
)
def test_a_sentence_says_why_there_are_none(
    tmp_path: Path, configs: list[dict[str, Any]], values: list[float], why: str
) -> None:
    subject = study(tmp_path / "s", at_once(configs, values))
    assert importance(subject) is None
    made = section(subject)
    assert made is not None and [type(part) for part in made.parts] == [Words]
    assert why in made.parts[0].text  # type: ignore[union-attr]
    with pytest.raises(StudyError, match="importances need ten trials"):
        subject.result.plot.importance()


def test_without_two_values_of_anything_there_is_no_section(tmp_path: Path) -> None:
    assert section(study(tmp_path / "fixed", at_once([{"x": 1}] * 20, range(20)))) is None
    assert section(study(tmp_path / "empty", [])) is None


def test_each_of_several_metrics_has_its_figure(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    configs = [{"x": float(x), "y": float(y)} for x, y in rng.random((30, 2))]
    metrics = [{"loss": c["x"], "size": c["y"]} for c in configs]
    made = section(study(tmp_path / "s", at_once(configs, metrics), metrics={"loss": "min", "size": "min"}))
    assert made is not None
    plots = [part for part in made.parts if isinstance(part, Plot)]
    assert [plot.name for plot in plots] == ["importance", "importance(metric='size')"]
    assert [plot.figure.layout.yaxis.ticktext[0] for plot in plots] == ["x", "y"]


def test_units_are_of_the_space_as_it_is_sampled() -> None:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    assert unit_of(0.01, FloatDistribution(1e-4, 1.0, log=True)) == 0.5
    assert unit_of(2, IntDistribution(1, 4)) == 0.375
    assert unit_of("b", CategoricalDistribution(("a", "b"))) == 0.75
    assert unit_of(True, CategoricalDistribution((1, True))) == 0.75
    assert unit_of(3.0, FloatDistribution(3.0, 3.0)) == 0.5
