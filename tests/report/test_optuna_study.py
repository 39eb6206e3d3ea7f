"""Which trials of a study are compared, and how Optuna is told of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import optuna
import pytest
from hand_made import Trial, at_once, study
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from hpo_ray.events import Decided, Event, Reported
from hpo_ray.report.optuna_study import Compared, compared, shown
from hpo_ray.report.subject import Subject
from hpo_ray.report.theme import thinned
from hpo_ray.testing import run_study


def of(subject: Subject, metric: str | None = None) -> Compared:
    found = compared(subject, metric)
    assert found is not None
    return found


def ladder(reached: list[int]) -> list[Trial]:
    """Trials that went through rungs 1, 3 and 9, each value being a hundred times the resource and the number."""
    return [Trial({"x": i}, {r: 100.0 * r + i for r in (1, 3, 9) if r <= top}) for i, top in enumerate(reached)]


def test_all_are_at_the_highest_resource_that_enough_have_reached(tmp_path: Path) -> None:
    few = of(study(tmp_path / "few", ladder([1] * 30 + [3] * 15 + [9] * 5), max_resource=9))
    assert (few.resource, few.highest, few.count, few.enough) == (3, 9, 20, 20)
    assert few.values == [300.0 + i for i in range(30, 50)], "with what they had there, not later"
    assert few.said == "20 trials at step 3, the highest that at least 20 have reached; some went on to step 9."
    many = of(study(tmp_path / "many", ladder([1] * 10 + [9] * 20), max_resource=9))
    assert (many.resource, many.said) == (9, "20 trials at step 9.")


def test_without_a_resource_that_enough_have_reached_the_fullest_counts(tmp_path: Path) -> None:
    found = of(study(tmp_path / "s", ladder([1] * 3 + [3] * 3 + [9] * 3), max_resource=9))
    assert (found.resource, found.count) == (1, 9)
    assert found.said == "9 trials at step 1; some went on to step 9."
    same = of(study(tmp_path / "same", ladder([9] * 3), max_resource=9))
    assert (same.resource, same.count) == (9, 3), "of equal ones the highest"


def test_more_hyperparameters_need_more_trials(tmp_path: Path) -> None:
    configs = [{f"x{k}": i + k for k in range(6)} for i in range(40)]
    trials = [Trial(c, {1: 1.0, 3: 2.0} if i < 25 else {1: 1.0}) for i, c in enumerate(configs)]
    found = of(study(tmp_path / "s", trials, max_resource=3))
    assert (found.enough, found.resource) == (30, 1)


def test_failed_trials_and_values_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    trials = [Trial({"x": 0}, {1: 0.1}, "failed"), Trial({"x": 1}, {1: math.nan}), Trial({"x": 2}, {1: 0.2})]
    assert [trial.number for trial in of(study(tmp_path / "s", trials)).trials] == [2]
    assert compared(study(tmp_path / "none", trials[:2])) is None


def test_a_population_counts_with_what_it_began_with(tmp_path: Path) -> None:
    trials = [Trial({"x": float(i)}, {1: 0.5 + i, 2: 0.4 + i}, None, {"exploits": 0}) for i in range(3)]
    changed: list[Event] = [
        Decided("2", "exploit", "", {"parent": 0}, 6.0, {"x": 9.0}, 2, {"loss": 0.4}),
        Reported("2", 3, 1, {"loss": 0.0}, 1.0, 7.0),
    ]
    found = of(study(tmp_path / "s", trials, more=changed, max_resource=9))
    assert found.population and found.resource == 2
    assert [config["x"] for config in found.configs] == [0.0, 1.0, 2.0]
    assert found.values == [0.4, 1.4, 2.4]
    assert found.said == "The configurations that 3 members began with, at step 2."


def test_a_large_study_is_thinned_and_keeps_its_best(tmp_path: Path) -> None:
    values = [1.0] * 2500
    best = min(set(range(2500)) - set(thinned(2500, 1999)))
    values[best] = 0.0
    found = of(study(tmp_path / "s", at_once(({"x": i} for i in range(2500)), values)))
    assert found.count == 2500 and 1999 <= len(found) <= 2000
    assert found.trials[found.best_first[0]].number == best
    assert found.said == f"2500 trials at step 1; drawn from {len(found)} of them, evenly chosen."


def test_distributions_are_inferred_from_values(tmp_path: Path) -> None:
    configs = [
        {
            "i": 1,
            "f": 0.5,
            "log": 1e-4,
            "many": 1,
            "c": "a",
            "mixed": 1,
            "nested": {"b": True},
            "list": [1],
            "bad": 1.0,
        },
        {"i": 9, "f": 1, "log": 1e-1, "many": 1000, "c": "b", "mixed": "1", "nested": {"b": False}, "bad": math.inf},
    ]
    found = of(study(tmp_path / "s", at_once(configs, [0.1, 0.2])))
    assert found.distributions == {
        "i": IntDistribution(1, 9),
        "f": FloatDistribution(0.5, 1.0),
        "log": FloatDistribution(1e-4, 1e-1, log=True),
        "many": IntDistribution(1, 1000, log=True),
        "c": CategoricalDistribution(("a", "b")),
        "mixed": CategoricalDistribution((1, "1")),
        "nested.b": CategoricalDistribution((True, False)),
        "list": CategoricalDistribution(("[1]",)),
        "bad": CategoricalDistribution((1.0, "Infinity")),
    }
    assert found.parameters == ("i", "f", "log", "many", "c", "mixed", "nested.b", "bad")
    assert len(found.study.trials) == 2


def test_a_text_that_differs_in_each_trial_is_no_choice(tmp_path: Path) -> None:
    found = of(study(tmp_path / "s", at_once(({"path": f"run {i}", "x": i} for i in range(51)), [1.0] * 51)))
    assert found.parameters == ("x",) and found.study.trials[3].params == {"x": 3}


def test_a_known_space_is_used_and_a_value_outside_of_it_is_not_refused(folder: Path) -> None:
    overrides = ["task=mixed10", "method=random", "budget.trials=6", "task.max_resource=1", "executor=inprocess"]
    subject = Subject.of(run_study(overrides, folder).path)
    found = of(subject)
    assert found.distributions["rate"] == FloatDistribution(1e-5, 1.0, log=True)
    assert set(found.distributions["kind"].choices) == {"plain", "wave", "tree"}  # type: ignore[attr-defined]
    assert subject.space is not None
    assert list(found.distributions) == [name for name in subject.space.names if name in found.distributions]
    changed = [{"x1": 99.0, "kind": "other"}, {"x1": 0.0, "kind": "wave"}]
    other = study(folder / "other", at_once(changed, [1.0, 2.0]))
    other.draft = subject.draft
    assert of(other).distributions == {
        "x1": FloatDistribution(0.0, 99.0),
        "kind": CategoricalDistribution(("other", "wave")),
    }
    assert len(of(other).study.trials) == 2


def test_names_and_choices_are_escaped_in_optunas_study_alone(tmp_path: Path) -> None:
    configs = [{"<b>x</b>": "<i>"}, {"<b>x</b>": "a&b"}]
    found = of(study(tmp_path / "s", at_once(configs, [1.0, 2.0])))
    assert found.parameters == ("<b>x</b>",)
    assert [trial.params for trial in found.study.trials] == [
        {"&lt;b&gt;x&lt;/b&gt;": "&lt;i&gt;"},
        {"&lt;b&gt;x&lt;/b&gt;": "a&amp;b"},
    ]


def test_each_of_several_metrics_is_compared_on_its_own(tmp_path: Path) -> None:
    trials = at_once(
        [{"x": 1}, {"x": 2}, {"x": 3}], [{"loss": 1.0, "size": 5}, {"loss": 2.0, "size": 4}, {"loss": 3.0}]
    )
    subject = study(tmp_path / "s", trials, metrics={"loss": "min", "size": "max"})
    assert of(subject).values == [1.0, 2.0, 3.0] and of(subject).study.direction.name == "MINIMIZE"
    assert of(subject, "size").values == [5.0, 4.0] and of(subject, "size").study.direction.name == "MAXIMIZE"
    assert of(subject, "size") is of(subject, "size"), "made once"
    assert compared(subject, "other") is None


def test_constraints_are_known_where_the_value_was_reported(tmp_path: Path) -> None:
    trials = at_once([{"x": 1}, {"x": 2}], [{"loss": 1.0, "size": 5}, {"loss": 2.0, "size": 3}])
    found = of(study(tmp_path / "s", trials, constraints={"size": {"high": 4}}))
    assert [trial.constraints for trial in found.study.trials] == [{"size high": 1.0}, {"size high": -1.0}]
    assert found.best_first == [1, 0]


def test_optunas_log_and_verbosity_stay_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = optuna.logging.get_verbosity()
    rng = np.random.default_rng(0)
    subject = study(tmp_path / "s", at_once(({"x": x} for x in rng.random(5).tolist()), [1.0] * 5))
    assert len(of(subject).study.trials) == 5
    assert optuna.logging.get_verbosity() == before
    assert capsys.readouterr().err == ""


def test_a_long_name_is_shortened_before_it_is_escaped() -> None:
    assert shown("a<b") == "a&lt;b"
    assert shown("&" * 40) == "&amp;" * 9 + "…" + "&amp;" * 10
