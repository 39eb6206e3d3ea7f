"""A cluster on a virtual clock: when things end, what is lost, who is busy, and that nothing else is different."""

from __future__ import annotations

import gc
import itertools
import json
import math
from pathlib import Path

import pytest
from methods import METHODS, SCHEDULERS, each_part_once, learns, small
from ray.tune.experiment import Trial

from hpo_ray.errors import ConfigError, StudyError
from hpo_ray.events import FILE_NAME, Reported, TrialAdded, TrialEnded, TrialRetried, read
from hpo_ray.executors import SimulatedExecutor
from hpo_ray.executors.simulated import Costs, SimulatedActorManager, Utilisation
from hpo_ray.results import StudyResult, load_study
from hpo_ray.testing import (
    check_same_decisions,
    check_same_events,
    check_same_proposals,
    check_time_never_goes_back,
    run_study,
)

# pbt_replay needs a study to replay: tests/schedulers/test_population.py runs it.
QUICK = [method for method in METHODS if "gp" not in method]
"""Without those whose suggestions take long."""
SPACE = "space={lr: {low: 0.01, high: 1.0}}"


def simulated(workers: int, *more: str) -> list[str]:
    return ["executor=simulated", f"executor.workers={workers}", *more]


def own(name: str, *more: str) -> list[str]:
    return ["task=custom", f"task.trainable=mine.{name}", SPACE, "task.max_resource=9", *more]


def times(result: StudyResult, kind: type) -> list[float]:
    return [event.time for event in read(result.path / FILE_NAME) if isinstance(event, kind)]


def end(result: StudyResult) -> float:
    assert result.state.ended is not None
    return result.state.ended.time


def said(result: StudyResult) -> dict:
    return json.loads((result.path / "result.json").read_text())["simulation"]


# When things end.


@pytest.mark.parametrize(("workers", "seconds"), [(1, 60.0), (2, 30.0), (3, 24.0), (6, 12.0), (100, 6.0)])
def test_ten_trials_of_six_steps_take_what_they_take(folder: Path, workers: int, seconds: float) -> None:
    overrides = ["method=random", "task=branin", "budget.trials=10", "task.max_resource=6", *simulated(workers)]
    result = run_study(overrides, folder)
    assert end(result) == seconds
    assert said(result)["utilisation"] == pytest.approx(60 / (workers * seconds), abs=1e-4)
    assert result.state.trained == 60 and result.state.seconds == 60.0


def test_synchronous_halving_waits_for_its_rungs(folder: Path) -> None:
    # 9@1 3@3 1@9 on 3 workers: 3 waves of 1 s, one of 2 s, one of 6 s.
    result = run_study(["method=successive_halving", "task=branin", "task.max_resource=9", *simulated(3)], folder)
    assert end(result) == 11.0
    # Promoted trials start at the moment at which their rung closes, all of them.
    assert sorted({event.time for event in read(result.path / FILE_NAME) if isinstance(event, Reported)}) == [
        1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0,
    ]  # fmt: skip
    assert said(result)["utilisation"] == pytest.approx((9 + 3 * 2 + 6) / 33, abs=1e-4)


def test_all_that_can_start_at_a_moment_starts_at_it(folder: Path) -> None:
    # As above with 10 s to start: 3 waves of 11 s, one of 12 s, one of 16 s. The three of rung 1 start together, though
    # the controller is asked for them one after another.
    overrides = ["method=successive_halving", "task=branin", "task.max_resource=9", *simulated(3)]
    result = run_study([*overrides, "executor.startup_s=10"], folder)
    assert end(result) == 3 * 11 + 12 + 16
    assert said(result)["utilisation"] == pytest.approx((9 * 11 + 3 * 12 + 16) / (3 * 61), abs=1e-4)


def test_start_and_checkpoints_take_time_on_the_worker(folder: Path) -> None:
    # 3@1 1@3, one worker. Each of the three: start 10, step 1, save 2. The best: start 10, load 2, two steps.
    overrides = ["method=successive_halving", "task=branin", "task.max_resource=3", *simulated(1)]
    result = run_study([*overrides, "executor.startup_s=10", "executor.checkpoint_s=2"], folder)
    assert end(result) == 3 * 13 + 10 + 2 + 2
    assert said(result)["utilisation"] == 1.0


def test_slow_workers_take_longer_and_stand_idle_first(folder: Path) -> None:
    overrides = ["method=random", "task=branin", "task.max_resource=4", *simulated(2, "executor.speeds=[0.5,2]")]
    assert end(run_study([*overrides, "budget.trials=1"], folder / "a")) == 2.0  # on the fast one
    both = run_study([*overrides, "budget.trials=2"], folder / "b")
    assert times(both, TrialEnded) == [2.0, 8.0]
    many = run_study([*overrides, "budget.trials=5"], folder / "c")
    assert times(many, TrialEnded) == [2.0, 4.0, 6.0, 8.0, 8.0]


def test_the_reported_cost_comes_before_the_function_and_a_constant_before_both(folder: Path) -> None:
    overrides = [*own("Costs"), "method=random", "budget.trials=3", *simulated(1)]
    reported = run_study([*overrides, "task.cost=mine.seconds"], folder / "a")
    assert end(reported) == pytest.approx(sum(9 * t.config["lr"] for t in reported.records), abs=1e-5)
    assert said(reported)["cost"] == "the reported metric cost"
    constant = run_study([*overrides, "task.cost=mine.seconds", "executor.step_s=0.25"], folder / "b")
    assert end(constant) == 3 * 9 * 0.25 and said(constant)["cost"] == "0.25 s a step (executor.step_s)"
    function = run_study(
        [*own("DictCheckpoint"), "method=random", "budget.trials=3", *simulated(1), "task.cost=mine.seconds"],
        folder / "c",
    )
    assert end(function) == pytest.approx(sum(90 * t.config["lr"] + 45 for t in function.records), abs=1e-4)
    assert said(function)["cost"] == "task.cost=mine.seconds"
    assert said(run_study(["task=parabola", *simulated(1)], folder / "d"))["cost"].startswith(
        "1 s a step: nothing says"
    )


def test_a_function_that_returns_costs_what_it_reported(folder: Path) -> None:
    overrides = [*own("costly_function"), "method=random", "budget.trials=2", *simulated(1)]
    result = run_study(overrides, folder / "reported")
    assert end(result) == 2 * 3 * 5.0 and said(result)["cost"] == "the reported metric cost"
    assert end(run_study([*overrides, "executor.step_s=7"], folder / "constant")) == 2 * 3 * 7.0


def test_nothing_is_reported_after_the_time_is_up(folder: Path) -> None:
    overrides = ["method=random", "task=branin", "budget.time_s=100", *simulated(2)]
    result = run_study([*overrides, "executor.step_s=40"], folder / "some")
    assert end(result) == 100.0 and result.state.trained == 4 and said(result)["utilisation"] == 1.0
    with pytest.raises(StudyError, match="no trial reported loss"):
        run_study([*overrides, "executor.step_s=1000"], folder / "none")


def test_free_steps_take_no_time(folder: Path) -> None:
    result = run_study(["task=parabola", *simulated(4, "executor.step_s=0")], folder)
    assert end(result) == 0.0 and result.state.states["completed"] == 8
    assert said(result)["utilisation_over_time"] == []


def test_budget_time_is_virtual(folder: Path) -> None:
    overrides = ["method=random", "task=branin", "budget.time_s=3600", "task.max_resource=9", *simulated(3)]
    result = run_study([*overrides, "executor.step_s=100"], folder)
    assert result.state.trained == 3 * 36 - 2  # those that end at 3600 s one after another; the first ends it
    assert result.state.ended is not None and result.state.ended.reason == "budget.time_s=3600 used up"
    assert said(result)["utilisation"] == 1.0


@pytest.mark.slow
def test_budget_resource_ends_a_study_of_any_method(folder: Path) -> None:
    for method in QUICK:
        overrides = [f"method={method}", "task=branin_currin", "budget.resource=200", *simulated(4)]
        overrides += ["searcher.sample=true"] if method == "grid" else []
        result = run_study(overrides, folder / method)
        assert result.state.trained == 200, method


# What is lost.


def test_lost_workers_cost_what_was_done_since_the_last_checkpoint(folder: Path) -> None:
    overrides = ["method=hyperband", "task=hartmann6", "task.max_resource=9", *simulated(2), "failure.max_retries=1000"]
    calm = run_study(overrides, folder / "calm")
    stormy = run_study([*overrides, "executor.failures=400"], folder / "stormy")
    again = run_study([*overrides, "executor.failures=400"], folder / "again")
    check_same_decisions(stormy, again)
    events = read(stormy.path / FILE_NAME)
    retried = [event for event in events if isinstance(event, TrialRetried)]
    assert len(retried) == said(stormy)["lost_workers"] > 5
    assert all("was lost at" in event.error and "executor.failures" in event.error for event in retried)
    # The same trials go on, since the values are the same; what was lost was trained again, and took longer.
    assert {t.number: t.value for t in stormy.records} == {t.number: t.value for t in calm.records}
    assert stormy.state.trained > calm.state.trained == 69 and end(stormy) > end(calm)
    assert said(calm)["lost_workers"] == 0
    # It went on from checkpoints: nobody reports again what lies at or below the resource of its last one.
    checkpoints: dict[str, int] = {}
    for event in events:
        if event.kind == "checkpoint_saved":
            checkpoints[event.trial_id] = event.resource
        elif isinstance(event, Reported):
            assert event.resource > checkpoints.get(event.trial_id, 0)


def test_lost_workers_fail_their_trials_without_retries(folder: Path) -> None:
    overrides = ["method=random", "task=branin", "budget.trials=40", "task.max_resource=9", *simulated(2)]
    result = run_study([*overrides, "executor.failures=100"], folder)
    assert result.state.states["failed"] == said(result)["lost_workers"] > 3
    assert result.state.states["completed"] == 40 - result.state.states["failed"]


def test_workers_are_lost_as_often_as_asked_for(folder: Path) -> None:
    # 400 trials of 180 s: 20 hours of work, some of it again. At 5 an hour some 100 are expected, and a Poisson count
    # lies within four standard deviations, 40.
    overrides = ["method=random", "task=branin", "budget.trials=400", "task.max_resource=9", *simulated(20)]
    result = run_study([*overrides, "executor.step_s=20", "executor.failures=5", "failure.max_retries=99"], folder)
    assert abs(said(result)["lost_workers"] - 5 * result.state.seconds / 3600) < 40


def test_a_worker_can_be_lost_while_it_starts_saves_and_loads(folder: Path) -> None:
    overrides = ["method=asha", "task=branin", "task.max_resource=9", "budget.trials=60", *simulated(4)]
    more = ["executor.startup_s=60", "executor.checkpoint_s=60", "executor.step_s=1", "executor.failures=30"]
    result = run_study([*overrides, *more, "failure.max_retries=1000"], folder)
    assert said(result)["lost_workers"] > 20 and result.state.states["failed"] == 0
    assert result.state.states["completed"] + result.state.states["stopped"] == 60
    check_time_never_goes_back(result)


# Who is busy.


def test_utilisation_widens_its_bins_and_loses_nothing() -> None:
    busy = Utilisation(2, bins=4)
    for start in range(10):
        busy.add(float(start), start + 1.0)
    busy.add(0.0, 5.0)
    # Bins of 0.25 s were doubled until four of them hold 10 s.
    assert busy.over_time(10.0) == [(4.0, 1.0), (8.0, 5 / 8), (10.0, 0.5)]
    assert busy.mean(10.0) == 0.75
    tiny = Utilisation(1)
    tiny.add(0.0, 1e-320)
    assert tiny.mean(1.0) == 1e-320
    assert Utilisation(1).over_time(0.0) == [] and Utilisation(1).mean(0.0) == 0.0


def test_the_result_tells_the_incumbent_over_virtual_time(folder: Path) -> None:
    result = run_study(["method=asha", "task=hartmann6", "budget.trials=60", *simulated(8)], folder)
    content = json.loads((result.path / "result.json").read_text())
    incumbents = content["incumbents"]
    assert [i["seconds"] for i in incumbents] == sorted(i["seconds"] for i in incumbents)
    assert incumbents[-1]["value"] == content["best"]["value"] and incumbents[0]["seconds"] == 1.0
    # Among trials at the same resource, it only gets better.
    for before, after in itertools.pairwise(incumbents):
        assert after["resource"] > before["resource"] or after["value"] < before["value"]
    assert content["totals"]["seconds"] == end(result)
    over_time = content["simulation"]["utilisation_over_time"]
    assert over_time[0][1] == 1.0 and over_time[-1][0] == pytest.approx(end(result), abs=1e-5)
    assert load_study(result.path).to_json()["simulation"] == content["simulation"]


@pytest.mark.parametrize("method", ["asha", "hyperband"])
def test_while_one_is_saved_a_free_worker_takes_another(folder: Path, method: str) -> None:
    """Costly checkpoints: a worker stands idle only when nothing could be started."""
    overrides = [f"method={method}", "task=hartmann6", "task.max_resource=9", *simulated(4, "executor.checkpoint_s=10")]
    result = run_study([*overrides, "budget.time_s=500"], folder)
    # Without a limit on trials there is always something to start.
    assert said(result)["utilisation"] == 1.0 and end(result) == 500.0


def test_a_trial_that_is_stopped_in_the_middle_of_a_step_is_busy_until_then() -> None:
    manager = SimulatedActorManager(1, Costs(10.0, None, None, "training_iteration"))
    actor = manager.add_actor(Stopped, {}, None)
    while actor not in manager._objects:
        manager.next()
    manager.schedule_actor_task(actor, "train")
    manager._run_steps()
    manager.now = 4.0
    manager.clear_actor_task_futures(actor)
    manager.remove_actor(actor)
    while manager.next():
        pass
    assert manager.utilisation.mean(4.0) == 1.0 and manager.busy_until(8.0).mean(8.0) == 0.5


class Stopped:
    def train(self) -> dict:
        return {}


# Nothing else is different.


@pytest.mark.parametrize(
    ("method", "task"),
    [
        *(pytest.param(*it.values, "branin_currin", marks=it.marks) for it in each_part_once(METHODS)),
        *itertools.product(SCHEDULERS.values(), ["train", "DictCheckpoint"]),
        ("hyperband", "digits_mlp"),
        *(
            pytest.param(method, "digits_mlp", marks=pytest.mark.slow)
            for method in SCHEDULERS.values()
            if method != "hyperband"
        ),
    ],
)
def test_law_same_decisions_in_process_and_simulated(folder: Path, method: str, task: str) -> None:
    overrides = own(task) if task in ("train", "DictCheckpoint") else [f"task={task}"]
    overrides = [f"method={method}", *overrides, "task.max_resource=4", "seed=3"]
    overrides += small(method)
    inprocess = run_study([*overrides, "executor=inprocess"], folder / "a")
    free = run_study([*overrides, *simulated(1)], folder / "b")
    costly = run_study([*overrides, *simulated(1, "executor.startup_s=3", "executor.checkpoint_s=2")], folder / "c")
    check_same_decisions(inprocess, free)
    check_same_events(free, costly)


@pytest.mark.parametrize("method", each_part_once(m for m in METHODS if not learns(m)))
def test_law_more_workers_propose_the_same_configurations_first(folder: Path, method: str) -> None:
    one = run_study([f"method={method}", "task=branin", "task.max_resource=9", *simulated(1)], folder / "one")
    for workers in (2, 7, 100):
        more = run_study(
            [f"method={method}", "task=branin", "task.max_resource=9", *simulated(workers)], folder / str(workers)
        )
        check_same_proposals(one, more)
        assert len(more.records) == len(one.records)


@pytest.mark.parametrize("method", each_part_once(QUICK))
def test_law_time_never_goes_back(folder: Path, method: str) -> None:
    more = ["executor.speeds=[1,0.3]", "executor.startup_s=0.7", "executor.checkpoint_s=0.2", "executor.failures=60"]
    overrides = [f"method={method}", "task=branin_currin", "task.max_resource=9", "failure.max_retries=99"]
    check_time_never_goes_back(run_study([*overrides, *simulated(5), *more], folder))


@pytest.mark.parametrize("workers", [1, 5, 50])
def test_no_worker_is_idle_while_there_is_work(folder: Path, workers: int) -> None:
    result = run_study(
        ["method=asha", "task=branin", "task.max_resource=9", "budget.trials=200", *simulated(workers)], folder
    )
    added = times(result, TrialAdded)
    last_added = added[-1]
    busy_s = sum(
        event.seconds
        for event in read(result.path / FILE_NAME)
        if isinstance(event, Reported) and event.time <= last_added
    )
    assert busy_s == workers * last_added


def test_paused_state_stays_in_memory_and_nothing_is_left_on_disk(folder: Path) -> None:
    for name in ("train", "DictCheckpoint"):
        result = run_study([*own(name), "method=hyperband", *simulated(3)], folder / name)
        assert sorted(t.resource for t in result.records) == [1] * 6 + [3] * 6 + [9] * 5
        assert result.best is not None and result.best.value == pytest.approx(
            min(t.config["lr"] for t in result.records if t.resource == 9) + 1 / 9
        )
        left = {str(path.relative_to(result.path)) for path in result.path.rglob("*") if path.is_file()}
        printed = {path for path in left if path.endswith("output.log")}
        files = {"config.yaml", "events.jsonl", "report.html", "result.json", "trials.jsonl"}
        assert left - printed == {*files, "best/best.json"}


def test_what_a_failed_save_wrote_is_in_nobody_elses_checkpoint(folder: Path) -> None:
    result = run_study([*own("WritesThenFailsToSave"), "method=hyperband", *simulated(2)], folder)
    failed = [t for t in result.records if t.state == "failed"]
    assert failed and all(t.config["lr"] < 0.2 and "disk full" in str(t.error) for t in failed)
    assert any(t.resource == 9 and len(t.history) == 9 for t in result.records)


def test_trackers_write_into_the_folders_of_trials(folder: Path) -> None:
    overrides = ["method=asha", "task=branin", "task.max_resource=3", "tracker=ray_loggers", *simulated(2)]
    result = run_study(overrides, folder)
    assert all((result.path / "trials" / str(number) / "result.json").exists() for number in range(3))


def test_a_function_without_checkpoints_is_told_the_ways_out(folder: Path) -> None:
    with pytest.raises(StudyError, match=r"on_missing_checkpoint=restart .*, or scheduler\.variant=stopping"):
        run_study([*own("no_checkpoint"), "method=asha", *simulated(2)], folder / "pauses")
    stops = run_study([*own("no_checkpoint"), "method=asha", "scheduler.variant=stopping", *simulated(2)], folder / "b")
    assert stops.state.states["failed"] == 0 and stops.state.states["completed"] >= 1


def test_ended_trials_are_forgotten(folder: Path) -> None:
    """Ray's trials, of which the controller and its callbacks hold thousands otherwise."""

    def alive() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Trial) for thing in gc.get_objects())

    most, before = 0, alive()  # what earlier studies left

    from hpo_ray.executors import recorder

    original = recorder.Recorder.on_trial_complete

    def counting(self, controller, trial, result):  # type: ignore[no-untyped-def]
        nonlocal most
        original(self, controller, trial, result)
        if trial.trial_id.endswith("50"):
            most = max(most, alive() - before)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder.Recorder, "on_trial_complete", counting)
        run_study(["method=random", "task=branin", "task.max_resource=1", "budget.trials=300", *simulated(4)], folder)
    assert 0 < most <= 10


# Bad input.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 0}, "executor.workers=0: must be a whole number >= 1"),
        ({"workers": -3}, "executor.workers=-3"),
        ({"workers": 1.5}, "executor.workers=1.5"),
        ({"step_s": -1.0}, "executor.step_s=-1.0: must be a finite number of seconds >= 0"),
        ({"step_s": math.nan}, "executor.step_s=nan"),
        ({"startup_s": math.inf}, "executor.startup_s=inf"),
        ({"checkpoint_s": -0.1}, "executor.checkpoint_s=-0.1"),
        ({"failures": -1.0}, "executor.failures=-1.0: must be a finite number of workers lost in an hour >= 0"),
        ({"speeds": []}, "executor.speeds=[]: must be a list of numbers > 0"),
        ({"speeds": [1.0, 0.0]}, "executor.speeds"),
        ({"speeds": [math.inf]}, "executor.speeds"),
        ({"speeds": "fast"}, "executor.speeds"),
        ({"cost": "mine.nothing"}, "task.cost=mine.nothing: mine has no 'nothing'"),
        ({"cost": "mine.no_argument"}, "task.cost=mine.no_argument: must be a function `cost(config, resource)`"),
    ],
)
def test_settings_that_can_not_be(folder: Path, settings: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SimulatedExecutor(**settings)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (own("CostsNothingSane"), "cost: -1.0 for the step to resource 3 of {'lr': "),
        (
            own("DictCheckpoint", "task.cost=mine.infinite_seconds"),
            "task.cost=mine.infinite_seconds: inf for the step to",
        ),
        (
            own("DictCheckpoint", "executor.speeds=[1e-310]"),
            "executor.speeds=[1e-310, 1e-310]: a step takes inf seconds",
        ),
        (
            own("DictCheckpoint", "task.cost=mine.raising_seconds"),
            "task.cost=mine.raising_seconds raised KeyError: 'batch",
        ),
    ],
)
def test_a_cost_that_can_not_be_ends_the_study(folder: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(StudyError) as caught:
        run_study([*simulated(2), "method=random", *overrides], folder)
    assert str(caught.value).startswith(message)
