"""Optuna's samplers: what they are told, of which resource, and that every space and history is theirs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from hpo_ray.config import load, to_plain
from hpo_ray.errors import ConfigError
from hpo_ray.schedulers import Hyperband, HyperbandCore
from hpo_ray.schedulers.brackets import Ladder
from hpo_ray.searchers import OptunaCore, OptunaSearcher
from hpo_ray.space import Categorical, Float, Int, Space
from hpo_ray.testing import run_study

LINE = Space({"x": Float(0.0, 1.0)})
SAMPLERS = ["TPESampler", "GPSampler", "CmaEsSampler", "NSGAIISampler", "NSGAIIISampler"]
EVERY = Space(
    {
        "a": Float(-1.0, 1.0),
        "b": Float(1e-4, 1.0, log=True),
        "c": Float(0.0, 1.0, step=0.1),
        "d": Int(1, 9),
        "e": Int(1, 1000, log=True),
        "f": Int(0, 12, step=4),
        "g": Categorical((1, 2, 4), ordered=True),
        "nested": {"h": ["p", "q", "r"], "i": [True, False], "none": [None, 1]},
        "j": Float(0.0, 1.0, when={"nested.h": "q"}),
        "k": 42,
        "l": {"value": "text", "when": {"nested.i": True}},
    }
)


def told(core: OptunaCore, resource: int | None) -> list[tuple[TrialState, float | None, dict[int, float]]]:
    """(state, value, curve) of what the study of a resource was told, placeholders of running trials left out."""
    trials = core._level(resource).study.get_trials(deepcopy=False)
    return [
        (t.state, t.values[0] if t.state is TrialState.COMPLETE else None, dict(t.intermediate_values))
        for t in trials
        if t.state in (TrialState.COMPLETE, TrialState.PRUNED) or t.intermediate_values
    ]


def states(core: OptunaCore, resource: int | None) -> list[TrialState]:
    return [t.state for t in core._level(resource).study.get_trials(deepcopy=False)]


def add(core: OptunaCore, number: int, curve: dict[int, float], end: str | None) -> None:
    proposal = core.suggest(number)
    assert proposal is not None
    core.add(number, proposal.config, proposal.tags)
    for resource, loss in curve.items():
        core.report(number, resource, (loss,))
    if end:
        core.end(number, end)


@pytest.mark.parametrize("sampler", ["TPESampler", "CmaEsSampler"])
def test_what_a_trial_became_is_what_the_sampler_is_told(sampler: str) -> None:
    core = OptunaCore(LINE, ladder=Ladder.single(9), sampler=sampler)
    add(core, 0, {1: 5.0, 3: 4.0, 9: 3.0}, "completed")
    add(core, 1, {1: 8.0, 3: 7.0}, "stopped")
    add(core, 2, {1: 6.0}, "failed")
    add(core, 3, {}, "failed")
    add(core, 4, {1: 2.0, 3: 1.0}, "completed")  # it ended by itself
    assert told(core, 9) == [
        (TrialState.COMPLETE, 3.0, {1: 5.0, 3: 4.0, 9: 3.0}),
        (TrialState.PRUNED, None, {1: 8.0, 3: 7.0}),
        (TrialState.COMPLETE, 1.0, {1: 2.0, 3: 1.0}),
    ]
    assert TrialState.RUNNING not in states(core, 9) and TrialState.WAITING not in states(core, 9)


@pytest.mark.parametrize("sampler", ["TPESampler", "GPSampler", "CmaEsSampler"])
def test_under_rungs_values_of_different_resources_are_never_mixed(sampler: str) -> None:
    core = OptunaCore(LINE, ladder=HyperbandCore(9).ladder, sampler=sampler)
    assert core.ladder is not None and core.ladder.resources == (1, 3, 9)
    add(core, 0, {1: 0.5}, "stopped")
    add(core, 1, {1: 0.4, 2: 0.35, 3: 0.3}, "stopped")
    add(core, 2, {1: 0.2, 3: 0.15, 9: 0.1}, "completed")
    add(core, 3, {1: 0.9, 4: 0.8}, "stopped")  # its report jumps over 3, and counts there
    values = {r: [value for _, value, _ in told(core, r)] for r in (1, 3, 9)}
    assert values == {1: [0.5, 0.4, 0.2, 0.9], 3: [0.3, 0.15, 0.8], 9: [0.1]}
    assert all(TrialState.RUNNING not in states(core, r) for r in (1, 3, 9))


def test_bohb_proposes_from_the_highest_rung_with_enough_results() -> None:
    """d + 2 = 3 results: the model is that of rung 1, then of 3, then of 9, as each gets its third."""
    core = OptunaCore(LINE, ladder=HyperbandCore(9).ladder)
    assert core.startup == 3
    models = []
    curves = [{1: 0.1}, {1: 0.2}, {1: 0.3, 3: 0.3}, {1: 0.4, 3: 0.4}, {1: 0.1, 3: 0.1}]
    curves += [{1: 0.5, 3: 0.5, 9: 0.5}] * 3 + [{}]
    for number, curve in enumerate(curves):
        proposal = core.suggest(number)
        assert proposal is not None
        models.append(proposal.tags.get("model"))
        add(core, number, curve, "stopped" if curve else "failed")
    assert models == [None, None, None, 1, 1, 3, 3, 3, 9]


def test_the_model_of_a_rung_knows_nothing_of_the_others() -> None:
    """Low losses at rung 1 lie at x near 0, those at rung 3 near 1: the model of 3 must propose near 1."""
    core = OptunaCore(LINE, ladder=Ladder((1, 3), lambda number: 1), startup=8)
    for number, x in enumerate(np.linspace(0.0, 1.0, 30)):
        core.add(number, {"x": float(x)})
        core.report(number, 1, (x,))
        if number % 2:
            core.report(number, 3, (-x,))
        core.end(number, "stopped")
    proposals = [core.suggest(number) for number in range(30, 50)]
    assert all(p is not None and p.tags == {"model": 3} for p in proposals)
    assert np.median([p.config["x"] for p in proposals if p]) > 0.8


def test_random_fraction_leaves_some_to_chance() -> None:
    core = OptunaCore(LINE, ladder=Ladder((1, 3), lambda number: 1), random_fraction=1 / 3)
    for number in range(20):
        core.add(number, {"x": 0.05 * number})
        core.report(number, 1, (0.05 * number,))
    proposals = [core.suggest(number) for number in range(20, 320)]
    model = sum("model" in p.tags for p in proposals if p)
    # Binomial(300, 2/3): mean 200, standard deviation 8.2; 4 of them.
    assert abs(model - 200) < 33


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_honours_every_domain(sampler: str) -> None:
    metrics = {"u": "min", "v": "min"} if "NSGA" in sampler else None
    settings = {"population_size": 4} if "NSGA" in sampler else {}
    core = OptunaCore(
        EVERY, ladder=Ladder.single(1), sampler=sampler, startup=4, metrics=metrics, settings=settings,
        initial=[EVERY.from_units([0.3] * len(EVERY))],
    )  # fmt: skip
    for number in range(6 if sampler == "GPSampler" else 24):
        proposal = core.suggest(number)
        assert proposal is not None
        assert EVERY.check(proposal.config) == proposal.config
        assert proposal.config["k"] == 42, "fixed values survive"
        json.dumps(proposal.config, allow_nan=False)
        core.add(number, proposal.config, proposal.tags)
        losses = (abs(proposal.config["a"]), proposal.config["d"] / 9)
        core.report(number, 1, losses if metrics else losses[:1])
        core.end(number, "completed")
    assert core.trials[0].config == EVERY.from_units([0.3] * len(EVERY)), "known configurations first"
    assert TrialState.RUNNING not in states(core, 1)


@pytest.mark.parametrize("sampler", ["TPESampler", "CmaEsSampler", "NSGAIISampler"])
@pytest.mark.parametrize("cut", [1, 9, 17])
def test_taken_up_again_with_trials_that_run(sampler: str, cut: int) -> None:
    """Three trials at a time, some paused for long: what a fresh one proposes after the same history is the same."""
    settings = {"population_size": 4} if sampler == "NSGAIISampler" else {}
    metrics = {"u": "min", "v": "min"} if sampler == "NSGAIISampler" else None
    resources = (1,) if metrics else (1, 3)
    several: dict[str, Any] = {"settings": settings, "metrics": metrics}

    def make() -> OptunaCore:
        ladder = Ladder(resources, lambda number: 1)
        return OptunaCore(EVERY, seed=5, ladder=ladder, sampler=sampler, startup=4, **several)

    first = make()
    proposals = []
    for number in range(20):
        if number == cut:
            again = make()
            again.replay(json.loads(json.dumps(first.journal)))
        proposals.append(first.suggest(number))
        if number >= cut:
            assert again.suggest(number) == proposals[-1]
        for core in (first, again) if number >= cut else (first,):
            proposal = proposals[-1]
            assert proposal is not None
            core.add(number, proposal.config, proposal.tags)
            if number >= 3:
                done = number - 3
                loss = abs(first.trials[done].config["a"])
                core.report(done, 1, (loss, 1.0 - loss) if metrics else (loss,))
                if done % 3 == 0 and not metrics:
                    core.report(done, 3, (loss / 2,))
                if done % 4 or metrics:
                    core.end(done, "failed" if done == 7 else "stopped" if done % 3 else "completed")


def test_same_numbers_as_optuna_alone() -> None:
    """The bridge changes nothing: the sampler, asked and told by hand with the same seeds, proposes the same."""
    core = OptunaCore(LINE, ladder=Ladder.single(1), settings={"multivariate": True}, seed=1)
    study = optuna.create_study()
    for number in range(25):
        proposal = core.suggest(number)
        assert proposal is not None
        study.sampler = core._make_sampler(number)
        trial = study.ask()
        x = trial.suggest_float("x", 0.0, 1.0)
        assert proposal.config == {"x": x}
        loss = (x - 0.3) ** 2
        study.tell(trial, loss)
        core.add(number, proposal.config, proposal.tags)
        core.report(number, 1, (loss,))
        core.end(number, "completed")


def test_a_gaussian_process_names_itself_and_predicts_what_it_was_told() -> None:
    core = OptunaCore(LINE, ladder=Ladder.single(1), sampler="GPSampler", startup=4,
                      settings={"deterministic_objective": True})  # fmt: skip
    for number, x in enumerate(np.linspace(0.0, 1.0, 8)):
        core.add(number, {"x": float(x)})
        core.report(number, 1, (100.0 + 10.0 * (x - 0.4) ** 2,))
        core.end(number, "completed")
    told = core.explain({"x": float(np.linspace(0.0, 1.0, 8)[3])})
    assert told["kernel"].startswith("Matern 5/2") and told["acquisition"] == "log EI" and told["results"] == 8
    # Without noise a process goes through its data.
    assert told["mean"] == pytest.approx(100.0 + 10.0 * (3 / 7 - 0.4) ** 2, abs=0.05)
    assert 0.0 <= told["deviation"] < 0.1
    assert "mean" not in OptunaCore(LINE, ladder=Ladder.single(1), sampler="GPSampler").explain({"x": 0.1})


def test_optuna_still_has_what_the_prediction_is_read_from() -> None:
    """Private to Optuna: when it moves, this names it, and studies show the model without its prediction."""
    from optuna._gp.gp import GPRegressor
    from optuna._gp.search_space import SearchSpace
    from optuna.samplers import GPSampler

    assert hasattr(GPRegressor, "posterior") and hasattr(SearchSpace, "get_normalized_params")
    assert hasattr(GPSampler(), "_gprs_cache_list")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"sampler": "Best"}, r"searcher\.sampler=Best: must be a sampler of Optuna.*TPESampler"),
        ({"random_fraction": 1.0}, r"searcher\.random_fraction=1\.0"),
        ({"startup": 0}, r"searcher\.startup=0"),
        ({"sampler": "CmaEsSampler", "metrics": {"a": "min", "b": "max"}}, r"task\.metrics.*CmaEsSampler takes none"),
        ({"sampler": "CmaEsSampler", "constraints": {"a": {"low": 1}}}, r"task\.constraints.*use searcher\.sampler="),
    ],
)
def test_mistakes(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        OptunaCore(LINE, **settings)


def test_settings_that_a_sampler_refuses_are_found_before_the_start() -> None:
    with pytest.raises(ConfigError, match=r"searcher\.settings=\{'candidates': 3\}: TPESampler refuses"):
        OptunaSearcher(LINE, settings={"candidates": 3})


def test_in_a_tuner_without_a_ladder_only_the_highest_resource_is_final() -> None:
    """What ASHA stopped at 1 and 3 looked final until a trial got to 9."""
    searcher = OptunaSearcher(LINE, metric="loss", mode="max")
    for number, last in enumerate([1, 3, 9, 3, 9]):
        trial_id = f"t{number}"
        assert searcher.suggest(trial_id) is not None
        for resource in range(1, last):
            searcher.on_trial_result(trial_id, {"training_iteration": resource, "loss": float(resource)})
        searcher.on_trial_complete(trial_id, {"training_iteration": last, "loss": float(last)})
    assert isinstance(searcher.core, OptunaCore)
    assert [(state, value) for state, value, _ in told(searcher.core, None)] == [
        (TrialState.PRUNED, None),
        (TrialState.PRUNED, None),
        (TrialState.COMPLETE, -9.0),
        (TrialState.PRUNED, None),
        (TrialState.COMPLETE, -9.0),
    ]
    searcher.suggest("bad")
    searcher.on_trial_complete("bad", {"training_iteration": 1, "loss": float("nan")})
    assert TrialState.RUNNING not in states(searcher.core, None)


def test_rays_own_tells_a_low_resource_as_final() -> None:
    """The defect that this bridge is there for, in Ray's `OptunaSearch`: ASHA's early stops become final values."""
    from ray.tune.search.optuna import OptunaSearch

    theirs = OptunaSearch(
        {"x": optuna.distributions.FloatDistribution(0.0, 1.0)}, metric="loss", mode="min",
        sampler=optuna.samplers.RandomSampler(seed=0),
    )  # fmt: skip
    ours = OptunaSearcher(LINE, metric="loss", mode="min", ladder=Hyperband(max_resource=9).ladder)
    for searcher in (theirs, ours):
        searcher.suggest("full")
        searcher.on_trial_complete("full", {"training_iteration": 9, "loss": 0.5})
        searcher.suggest("stopped")
        searcher.on_trial_complete("stopped", {"training_iteration": 1, "loss": 0.1})
        searcher.suggest("failed")
        searcher.on_trial_result("failed", {"training_iteration": 1, "loss": float("nan")})
    trials = theirs._ot_study.get_trials(deepcopy=False)
    assert [(t.state, t.value) for t in trials[:2]] == [(TrialState.COMPLETE, 0.5), (TrialState.COMPLETE, 0.1)]
    assert isinstance(ours.core, OptunaCore)
    assert [value for _, value, _ in told(ours.core, 9)] == [0.5]
    assert [value for _, value, _ in told(ours.core, 1)] == [0.1]


@pytest.mark.parametrize("whose", ["ours", "ray"])
def test_under_asha_no_low_resource_is_final(folder: Path, whose: str) -> None:
    """A study of ASHA with TPE, and the same with Ray's bridge: what the sampler believes to be final, and what was."""
    from ray.tune.search.optuna import OptunaSearch

    from hpo_ray.executors.loop import run
    from hpo_ray.study import build, draft
    from hpo_ray.view import View

    typed = ["method=tpe_asha", "task=hartmann6", "task.max_resource=9", "budget.trials=40", f"study.root={folder}"]
    study = build(draft(load([*typed, "executor=inprocess"])))
    if whose == "ray":
        theirs = OptunaSearch(study.draft.space.to_optuna(), metric="loss", mode="min", seed=0)
        study = dataclasses.replace(study, searcher=theirs)
    result = run(study, View())
    at = {r: {dict(t.history).get(r) for t in result.records} for r in (1, 3, 9)}
    stopped = [t.value for t in result.records if t.resource < 9]
    assert len(stopped) > 10
    if whose == "ray":
        values = [t.value for t in study.searcher._ot_study.get_trials() if t.state is TrialState.COMPLETE]
        assert set(stopped) <= set(values), "the defect: all of these are final to it"
        return
    assert isinstance(study.searcher, OptunaSearcher) and isinstance(study.searcher.core, OptunaCore)
    for resource in (1, 3, 9):
        values = [value for _, value, _ in told(study.searcher.core, resource)]
        assert values and set(values) <= at[resource], "only what was reported at this resource"
    full = [value for _, value, _ in told(study.searcher.core, 9)]
    assert not set(full) & set(stopped)


def test_save_and_restore_in_a_tuner(tmp_path: Path) -> None:
    first = OptunaSearcher(LINE, metric="loss", mode="min", sampler="CmaEsSampler", seed=3)
    for number in range(12):
        config = first.suggest(str(number))
        assert isinstance(config, dict)
        if number < 9:
            first.on_trial_complete(str(number), {"training_iteration": 1, "loss": config["x"]})
    first.save(str(tmp_path / "searcher"))
    again = OptunaSearcher(LINE, metric="loss", mode="min", sampler="CmaEsSampler", seed=3)
    again.restore(str(tmp_path / "searcher"))
    for number in range(12, 20):
        assert first.suggest(str(number)) == again.suggest(str(number))
        for searcher in (first, again):
            searcher.on_trial_complete(str(number - 3), {"training_iteration": 1, "loss": 0.5})


@pytest.mark.parametrize("method", ["tpe", "gp", "cmaes", "bohb", "tpe_asha", "gp_hyperband", "nsga2", "tpe_multi"])
def test_the_configurations_name_real_samplers_and_settings(method: str) -> None:
    from hpo_ray.study import build, draft

    task = "branin_currin" if method in ("nsga2", "tpe_multi") else "digits_mlp"
    study = build(draft(load([f"method={method}", f"task={task}"])))
    assert isinstance(study.searcher, OptunaSearcher) and to_plain(study.draft.config["searcher"])


def test_a_study_says_what_its_model_predicts(folder: Path) -> None:
    overrides = ["method=gp", "task=parabola", "searcher.startup=3", "budget.trials=6", "executor=inprocess"]
    result = run_study(overrides, folder)
    model = json.loads((result.path / "result.json").read_text())["model"]
    assert model["sampler"] == "GPSampler" and model["results"] == 6 and model["resource"] == 27
    assert result.best is not None and abs(model["mean"] - result.best.value) < 5 * model["deviation"] + 0.1  # type: ignore[operator]


def test_a_model_that_can_not_say_anything_costs_no_study_its_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explain(self: OptunaCore, config: Any) -> Any:
        raise ValueError("not positive definite")

    monkeypatch.setattr(OptunaCore, "explain", explain)
    result = run_study(["method=tpe", "task=parabola", "budget.trials=3", "executor=inprocess"], folder)
    assert result.state.ended is not None and result.state.ended.state == "finished"
    assert result.state.ended.model is None and (result.path / "result.json").exists()
