"""What the schedulers tell Ray's controller and hear from it, with a controller and trials that only note."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from hpo_ray.errors import ConfigError, StudyError
from hpo_ray.schedulers import ASHA, FIFO, Hyperband, SuccessiveHalving

CONTINUE, PAUSE, STOP = TrialScheduler.CONTINUE, TrialScheduler.PAUSE, TrialScheduler.STOP


@dataclass
class OneTrial:
    trial_id: str
    config: dict[str, float] = field(default_factory=dict)
    status: str = Trial.RUNNING
    is_saving: bool = False
    checkpoint: Any = "there"

    def is_finished(self) -> bool:
        return self.status in (Trial.TERMINATED, Trial.ERROR)


@dataclass
class Searcher:
    told: list[tuple[str, str]] = field(default_factory=list)

    def on_pause(self, trial_id: str) -> None:
        self.told.append(("pause", trial_id))

    def on_unpause(self, trial_id: str) -> None:
        self.told.append(("unpause", trial_id))


@dataclass
class Controller:
    """Ray's controller and its search algorithm in one."""

    scheduler: Any
    searcher: Any = field(default_factory=Searcher)
    finished: bool = False
    trials: list[OneTrial] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)

    @property
    def search_alg(self) -> Controller:
        return self

    def is_finished(self) -> bool:
        return self.finished

    def get_live_trials(self) -> list[OneTrial]:
        return [trial for trial in self.trials if not trial.is_finished()]

    def stop_trial(self, trial: OneTrial) -> None:
        self.stopped.append(trial.trial_id)
        self.scheduler.on_trial_remove(self, trial)
        trial.status = Trial.TERMINATED

    def add(self, count: int) -> list[OneTrial]:
        for _ in range(count):
            self.trials.append(OneTrial(str(len(self.trials))))
            self.scheduler.on_trial_add(self, self.trials[-1])
        return self.trials

    def report(self, trial: OneTrial, resource: int, loss: float, saving: bool = False) -> str:
        decision = self.scheduler.on_trial_result(self, trial, {"training_iteration": resource, "loss": loss})
        if decision == PAUSE:
            trial.is_saving = saving
            trial.status = Trial.RUNNING if saving else Trial.PAUSED
        return decision

    def choose(self) -> str | None:
        trial = self.scheduler.choose_trial_to_run(self)
        if trial is None:
            return None
        assert trial.status == Trial.PAUSED and not trial.is_saving
        trial.status = Trial.RUNNING
        return trial.trial_id


def start(trials: int, scheduler: Any = None) -> Controller:
    controller = Controller(scheduler or SuccessiveHalving(9, metric="loss", mode="min"))
    controller.add(trials)
    return controller


def test_promoted_trials_come_once_each_and_losers_are_stopped():
    controller = start(9)
    assert [controller.report(trial, 1, -int(trial.trial_id)) for trial in controller.trials] == [PAUSE] * 9
    assert [controller.choose() for _ in range(5)] == ["8", "7", "6", None, None]
    assert sorted(controller.stopped) == ["0", "1", "2", "3", "4", "5"]
    assert controller.report(controller.trials[8], 2, 0.0) == CONTINUE
    assert controller.report(controller.trials[8], 3, 0.0) == PAUSE
    # The searcher hears of each pause and each promotion.
    assert [told for told in controller.searcher.told if told[0] == "unpause"] == [("unpause", i) for i in "876"]
    assert {i for what, i in controller.searcher.told if what == "pause"} >= set("012345678")


def test_more_is_better_with_mode_max():
    controller = start(9, SuccessiveHalving(9, metric="loss", mode="max"))
    for trial in controller.trials:
        controller.report(trial, 1, int(trial.trial_id))
    assert [controller.choose() for _ in range(4)] == ["8", "7", "6", None]


def test_no_trial_is_touched_while_it_is_saved():
    controller = start(9)
    for trial in controller.trials:
        controller.report(trial, 1, int(trial.trial_id), saving=trial.trial_id in "08")
    # The best is still being saved, on the worker that it will go on with; a free one takes the next.
    assert controller.scheduler.promotions(False) == 2
    assert [controller.choose() for _ in range(4)] == ["1", "2", None, None]
    assert sorted(controller.stopped) == ["3", "4", "5", "6", "7"]
    for i in (0, 8):
        controller.trials[i].is_saving, controller.trials[i].status = False, Trial.PAUSED
    assert [controller.choose() for _ in range(2)] == ["0", None]
    assert controller.stopped[-1] == "8"


def test_promoted_trials_wait_for_room():
    controller = start(9)
    for trial in controller.trials:
        controller.report(trial, 1, int(trial.trial_id))
    controller.scheduler.room = lambda: 0
    assert controller.scheduler.promotions(False) == 0
    assert controller.choose() is None and len(controller.scheduler.fold.promoted) == 3
    controller.scheduler.room = lambda: 9
    assert controller.choose() == "0" and controller.scheduler.promotions(False) == 2


def test_asha_promotes_another_while_one_that_moves_up_is_saved():
    controller = start(6, ASHA(9, metric="loss", mode="min"))
    scheduler = controller.scheduler
    scheduler.room = lambda: 1
    for trial in controller.trials:
        controller.report(trial, 1, int(trial.trial_id), saving=trial.trial_id == "0")
    # Two of six may move up. Trial 0 is still being saved, on its own worker; the free one is for trial 1.
    assert scheduler.promotions(False) == 1
    assert list(scheduler.fold.promoted) == ["0", "1"] and controller.choose() == "1"


def test_a_promoted_trial_that_is_stopped_from_outside_is_passed_over():
    controller = start(9)
    for trial in controller.trials:
        controller.report(trial, 1, int(trial.trial_id))
    assert controller.scheduler.promotions(False) == 3
    controller.stop_trial(controller.trials[0])
    assert [controller.choose() for _ in range(3)] == ["1", "2", None]
    for trial in controller.trials[1:3]:
        controller.report(trial, 3, 0.0)
    assert controller.choose() == "1"


def test_a_retried_trial_keeps_its_place_and_a_failed_one_is_out():
    controller = start(9)
    first, second = controller.trials[:2]
    first.status = Trial.ERROR  # Ray: on_trial_error, then on_trial_add
    controller.scheduler.on_trial_error(controller, first)
    controller.scheduler.on_trial_add(controller, first)
    first.status = Trial.RUNNING
    controller.scheduler.on_trial_error(controller, second)  # a final failure comes with status RUNNING
    second.status = Trial.ERROR
    for trial in controller.trials:
        if trial is not second:
            controller.report(trial, 1, int(trial.trial_id))
    assert [controller.choose() for _ in range(4)] == ["0", "2", "3", None]


def test_a_trial_that_ended_by_itself_ranks_with_its_last_result_and_without_one_as_failed():
    controller = start(9)
    for trial in controller.trials[2:]:
        controller.report(trial, 1, int(trial.trial_id))
    for trial, result in zip(controller.trials, ({"loss": -1.0, "training_iteration": 1}, {}), strict=False):
        controller.scheduler.on_trial_complete(controller, trial, result)
        trial.status = Trial.TERMINATED
    # One of the three places is used up by trial 0; trial 1 has none.
    assert [controller.choose() for _ in range(3)] == ["2", "3", None]


def test_reasons_and_tags():
    controller = start(9)
    scheduler = controller.scheduler
    for trial in controller.trials:
        controller.report(trial, 1, int(trial.trial_id))
    assert scheduler.reason("0") == "waits at rung 0 of bracket 0"
    reasons = {}
    stop_trial = controller.stop_trial
    controller.stop_trial = lambda trial: (
        reasons.update({trial.trial_id: scheduler.reason(trial.trial_id)}),
        stop_trial(trial),
    )
    controller.choose()
    assert reasons["8"] == "rank 9 of 9 in rung 0 of bracket 0, 3 go on"
    assert scheduler.reason("2") == "rank 3 of 9 in rung 0 of bracket 0, 3 go on"
    assert scheduler.reason("8") == ""
    assert scheduler.tags("2") == {"bracket": 0, "rung": 1}


@pytest.mark.parametrize("searcher", [None, object()])
def test_searchers_that_know_no_pauses_are_left_alone(searcher):
    controller = start(9)
    controller.searcher = searcher
    for trial in controller.trials:
        controller.report(trial, 1, int(trial.trial_id))
    assert controller.choose() == "0"


def test_fifo_stops_at_the_maximum():
    controller = start(2, FIFO(3, metric="loss", mode="min"))
    assert [controller.report(controller.trials[0], r, 0.0) for r in (1, 2, 3)] == [CONTINUE, CONTINUE, STOP]
    assert controller.scheduler.reason("0") == "reached max_resource 3"
    assert controller.choose() is None and controller.stopped == []
    assert controller.scheduler.tags("0") == {}


# Errors ----------------------------------------------------------------------------------------------------------


def test_a_rung_that_can_not_fill_is_an_error_after_some_steps_without_progress():
    controller = start(2)
    controller.report(controller.trials[0], 1, 0.0)
    for _ in range(100):
        assert controller.choose() is None  # trial 1 is running
    controller.report(controller.trials[1], 1, 0.0)
    for _ in range(20):
        assert controller.choose() is None
    controller.add(1)
    for _ in range(20):
        assert controller.choose() is None  # progress: it counts from the beginning again
    controller.report(controller.trials[2], 1, 0.0)
    for _ in range(20):
        assert controller.choose() is None
    with pytest.raises(StudyError, match=r"waits for 6 more of its 9 trials.*max_concurrent_trials"):
        for _ in range(100):
            assert controller.choose() is None


def test_a_rung_that_can_not_fill_is_none_when_no_more_trials_come():
    controller = start(2)
    for trial in controller.trials:
        controller.report(trial, 1, 0.0)
    controller.finished = True
    assert controller.choose() == "0" and controller.stopped == ["1"]


def test_a_pause_without_a_checkpoint_is_an_error_unless_restarting_is_asked_for():
    for choice in ("error", "restart"):
        controller = start(9, SuccessiveHalving(9, metric="loss", mode="min", on_missing_checkpoint=choice))
        for trial in controller.trials:
            trial.checkpoint = None
            controller.report(trial, 1, int(trial.trial_id))
        if choice == "restart":
            assert controller.choose() == "0"
            continue
        with pytest.raises(StudyError, match=r"^trial 0 .*scheduler\.on_missing_checkpoint=restart"):
            controller.choose()


def test_a_time_attr_that_was_not_reported_is_named():
    controller = start(1, Hyperband(9, metric="loss", mode="min", time_attr="epoch"))
    with pytest.raises(StudyError, match=r"time_attr='epoch'.*reported: loss, training_iteration$"):
        controller.report(controller.trials[0], 1, 0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "least"}, "scheduler.mode='least': must be min or max"),
        ({"on_missing_checkpoint": "ignore"}, "scheduler.on_missing_checkpoint='ignore': must be error or restart"),
        ({"eta": 1}, "scheduler.eta=1: "),
        ({"min_resource": 10}, "scheduler.min_resource=10 "),
    ],
)
@pytest.mark.parametrize("scheduler", [Hyperband, SuccessiveHalving])
def test_bad_arguments(scheduler, arguments, message):
    with pytest.raises(ConfigError) as caught:
        scheduler(9, **arguments)
    assert str(caught.value).startswith(message)
    assert caught.value.key == message.partition("=")[0]


def test_metric_and_mode_come_from_one_side():
    scheduler = Hyperband(9)
    assert scheduler.set_search_properties("loss", "max") and (scheduler.metric, scheduler._mode) == ("loss", "max")
    scheduler = Hyperband(9, metric="loss", mode="min")
    assert scheduler.set_search_properties(None, None)
    assert not scheduler.set_search_properties("loss", None)
    assert not scheduler.set_search_properties(None, "min")
    assert (scheduler.metric, scheduler._mode) == ("loss", "min")


def test_results_are_not_buffered():
    # Buffered, a trial would train past its rung.
    assert not Hyperband(9).supports_buffered_results


# Retries and limits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", [True, False], ids=["after its rung closed", "before its rung closed"])
def test_a_trial_that_is_retried_while_it_is_saved_is_paused_again_before_it_goes_on(closed):
    controller = start(9)
    first, *others = controller.trials
    controller.report(first, 1, 0.0, saving=True)
    for trial in others[: 8 if closed else 7]:
        controller.report(trial, 1, int(trial.trial_id))
    assert controller.choose() == ("1" if closed else None)
    first.status, first.is_saving = Trial.ERROR, False
    controller.scheduler.on_trial_error(controller, first)
    controller.scheduler.on_trial_add(controller, first)
    first.status = Trial.PENDING
    if not closed:
        controller.report(others[-1], 1, 8.0)
    assert [controller.choose() for _ in range(3)] == (["2", None, None] if closed else ["1", "2", None])
    first.status = Trial.RUNNING
    assert controller.report(first, 1, 0.5) == PAUSE  # as before: what it reports again decides nothing
    assert [controller.choose() for _ in range(2)] == ["0", None]
    assert [controller.report(first, r, 0.0) for r in (2, 3)] == [CONTINUE, PAUSE]
    assert controller.choose() is None  # it waits for the others at the next rung


def test_a_place_that_gets_free_is_for_a_promoted_trial_first():
    controller = start(9)
    room = False
    controller.searcher.has_room = lambda: room
    for trial in controller.trials:
        controller.report(trial, 1, int(trial.trial_id))
    assert controller.searcher.told == []
    assert controller.choose() is None
    assert controller.searcher.told == [("pause", i) for i in "012345678"]
    room = True
    assert controller.choose() == "0"


@pytest.mark.parametrize(("arguments", "missing"), [({"mode": "min"}, "metric"), ({"metric": "loss"}, "mode")])
def test_metric_and_mode_must_come_from_somewhere(arguments, missing):
    with pytest.raises(ConfigError, match=rf"^scheduler\.{missing} is not set: give it to Hyperband or to TuneConfig"):
        start(1, Hyperband(9, **arguments))
