"""The schedulers as Ray Tune knows them: thin adapters over the cores.

Callbacks record, only `choose_trial_to_run` decides: Ray calls it once a step, when no trial is half-way between two
states. It stops the paused trials that lost, and returns each promoted one once, as soon as Ray has saved it.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from hpo_ray.errors import ConfigError, StudyError
from hpo_ray.schedulers.asha import ASHACore
from hpo_ray.schedulers.brackets import Ladder
from hpo_ray.schedulers.core import NO_MOVES, Action, Clone, SchedulerCore
from hpo_ray.schedulers.fifo import FIFOCore
from hpo_ray.schedulers.fold import SchedulerFold
from hpo_ray.schedulers.halving import HyperbandCore, SuccessiveHalvingCore
from hpo_ray.schedulers.median import MedianStoppingCore

_RAY_ACTION = {
    Action.CONTINUE: TrialScheduler.CONTINUE,
    Action.PAUSE: TrialScheduler.PAUSE,
    Action.STOP: TrialScheduler.STOP,
}
_PATIENCE = 30
"""Steps without anything running or pending after which a waiting rung is an error (a step then takes 0.1 s)."""


class CoreScheduler(TrialScheduler):  # type: ignore[misc]  # ray ships no types
    """A `SchedulerCore` behind Ray Tune's scheduler interface.

    Args:
        core: the algorithm.
        metric: name of the metric; by default the one given to `TuneConfig`.
        mode: `min` or `max`; by default the one given to `TuneConfig`.
        time_attr: name of the reported value that counts resource, in whole units.
        on_missing_checkpoint: what to do when a trial is paused that reports no checkpoint: `error` ends the
            study, `restart` trains it again from the beginning when it goes on.
    """

    _without_checkpoints: ClassVar[str] = ""
    # Buffered results would let a trial run past its rung.
    _supports_buffered_results = False

    def __init__(
        self,
        core: SchedulerCore,
        metric: str | None,
        mode: str | None,
        time_attr: str,
        on_missing_checkpoint: str = "error",
    ) -> None:
        super().__init__()
        if mode not in (None, "min", "max"):
            raise ConfigError(f"scheduler.mode={mode!r}: must be min or max", key="scheduler.mode")
        if on_missing_checkpoint not in ("error", "restart"):
            raise ConfigError(
                f"scheduler.on_missing_checkpoint={on_missing_checkpoint!r}: must be error or restart",
                key="scheduler.on_missing_checkpoint",
            )
        self.fold = SchedulerFold(core)
        self.on_missing_checkpoint = on_missing_checkpoint
        self._metric = metric
        self._mode = mode
        self._time_attr = time_attr
        self._trials: dict[str, Trial] = {}
        self._pausing: dict[str, Trial] = {}
        self._paused: set[str] = set()
        self._last_promoted: Trial | None = None
        self._idle_steps = 0
        self.room: Callable[[], int] = lambda: sys.maxsize
        """How many trials could start at once. Without asking, promoted trials queue up in Ray, which starts them in
        no order: it takes them from a set."""

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Takes metric and mode from `TuneConfig`; False if both sides name one."""
        if (self._metric and metric) or (self._mode and mode):
            return False
        self._metric = self._metric or metric
        self._mode = self._mode or mode
        return True

    def reason(self, trial_id: str) -> str:
        """Why the last decision about this trial was taken."""
        return self.fold.reasons.get(trial_id, "")

    @property
    def core(self) -> SchedulerCore:
        """The algorithm."""
        return self.fold.core

    @property
    def ladder(self) -> Ladder:
        """At which resources trials are compared, which searchers have to know."""
        return self.core.ladder

    def tags(self, trial_id: str) -> Mapping[str, int]:
        """What the algorithm says of a trial: bracket, rung."""
        return self.core.tags(trial_id)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Ray calls this again for a trial that it retries.

        Raises:
            ConfigError: neither the scheduler nor `TuneConfig` names the metric or the mode.
        """
        for name, value in (("metric", self._metric), ("mode", self._mode)):
            if value is None:
                raise ConfigError(
                    f"scheduler.{name} is not set: give it to {type(self).__name__} or to TuneConfig",
                    key=f"scheduler.{name}",
                )
        self._trials[trial.trial_id] = trial
        if trial.status == Trial.PAUSED:  # it was before, and the study is taken up
            self._pausing[trial.trial_id] = trial
        self.fold.add(trial.trial_id, trial.config)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Records the report and returns what Ray should do with the trial."""
        if self._time_attr not in result:
            raise StudyError(
                f"scheduler.time_attr={self._time_attr!r} was not reported; reported: {', '.join(sorted(result))}"
            )
        decision = self.fold.report(trial.trial_id, int(result[self._time_attr]), self._loss(result))
        if decision.action is Action.PAUSE:
            self._pausing[trial.trial_id] = trial
        return str(_RAY_ACTION[decision.action])

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """The trial was stopped while it ran, or ended by itself; without any report it counts as failed."""
        reported = bool(result) and self._metric in result
        if reported and self._time_attr in result:  # the last report of a trial that ended by itself comes here only
            self.fold.report(trial.trial_id, int(result[self._time_attr]), self._loss(result))
        self.fold.end(trial.trial_id, self._loss(result) if reported else None)
        self._forget(trial)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """A failure. With status ERROR Ray is about to retry the trial: it keeps its place."""
        if trial.status != Trial.ERROR:
            self.fold.end(trial.trial_id, None)
            self._forget(trial)
            return
        # One that failed while it was saved for a pause trains again up to there, and is paused again.
        self._pausing.pop(trial.trial_id, None)
        self._paused.discard(trial.trial_id)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """The trial was stopped while it was paused or pending."""
        self.fold.end(trial.trial_id, None)
        self._forget(trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Closes complete rungs, stops the losers, and returns the next promoted trial, or None."""
        self._check_pauses(tune_controller)
        self._close_rungs(tune_controller.search_alg.is_finished())
        for trial in [self._trials[trial_id] for trial_id in self.fold.losers if trial_id in self._trials]:
            if not (trial.is_saving or trial.status == Trial.RUNNING or trial.is_finished()):
                tune_controller.stop_trial(trial)
        if self.fold.promoted and self.room() > 0 and self._searcher_has_room(tune_controller):
            trial = next(self._startable(), None)
            if trial is None:
                return None
            self._idle_steps = 0
            self._paused.discard(trial.trial_id)
            self._prepare(trial, self.fold.start(trial.trial_id))
            self._tell_searcher(tune_controller, "on_unpause", trial)
            self._last_promoted = trial
            return trial
        self._check_progress()
        return None

    def promotions(self, source_finished: bool) -> int:
        """How many promoted trials would take a place that is free now; they come before new ones.

        One that is still being saved holds the worker that it will go on with.

        Args:
            source_finished: no further trial will be added.
        """
        self._close_rungs(source_finished)
        return self._ready()

    def may_go_on(self) -> int:
        """How many paused trials will want a worker, at most, if no new ones come."""
        may_promote = getattr(self.core, "may_promote", None)
        paused = len(self._paused) + len(self._pausing)
        return paused if may_promote is None else min(paused, len(self.fold.promoted) + may_promote())

    def debug_string(self) -> str:
        """One line for Ray's own progress table."""
        return f"{type(self).__name__}: {len(self._trials)} trials"

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the state is a fold over what happened, and Ray never restores a scheduler."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""

    def _startable(self) -> Iterator[Trial]:
        """The promoted trials that can go on now."""
        promoted = (self._trials.get(trial_id) for trial_id in self.fold.promoted)
        return (trial for trial in promoted if trial is not None and self._can_start(trial))

    def _can_start(self, trial: Trial) -> bool:
        """Whether a promoted trial can go on now: not while it is saved, or trains again up to where it was paused."""
        return _is_saved(trial)

    def _prepare(self, trial: Trial, clone: Clone | None) -> None:
        """What is left to do for a promoted trial before Ray gets it."""

    def _one_at_a_time(self) -> int:
        """In a Tuner of the user's own, which doesn't say when a worker is free: one promoted trial waits at a time."""
        last = self._last_promoted
        return 0 if last is not None and last.status == Trial.PENDING else 1

    def _ready(self) -> int:
        """Promoted trials that could start now, counted up to the room that there is."""
        return sum(1 for _ in itertools.islice(self._startable(), max(0, self.room())))

    def _close_rungs(self, source_finished: bool) -> None:
        # Again if who moves up is still being saved: the free place is then for the next.
        while self.fold.advance(source_finished, self.room() - self._ready()) is not NO_MOVES:
            pass

    def _loss(self, result: Mapping[str, Any]) -> float:
        value = float(result[self._metric])  # type: ignore[index]  # Ray checks that the metric is there
        return -value if self._mode == "max" else value

    def _forget(self, trial: Trial) -> None:
        self._trials.pop(trial.trial_id, None)
        self._pausing.pop(trial.trial_id, None)
        self._paused.discard(trial.trial_id)

    def _tell_searcher(self, tune_controller: Any, what: str, trial: Trial) -> None:
        """Searchers that count live trials themselves leave out the paused ones."""
        searcher = getattr(tune_controller.search_alg, "searcher", None)
        while searcher is not None and not hasattr(type(searcher), what):
            searcher = getattr(searcher, "searcher", None)
        # Ray's ConcurrencyLimiter has the method, and calls it on a searcher which may not.
        inner = getattr(searcher, "searcher", searcher)
        if searcher is not None and hasattr(inner, what):
            getattr(searcher, what)(trial.trial_id)

    def _searcher_has_room(self, tune_controller: Any) -> bool:
        """In a Tuner of the user's own, a searcher of ours keeps `max_concurrent_trials`, for promoted trials too."""
        searcher = getattr(tune_controller.search_alg, "searcher", None)
        while searcher is not None and not hasattr(searcher, "has_room"):
            searcher = getattr(searcher, "searcher", None)
        return searcher is None or bool(searcher.has_room())

    def _check_pauses(self, tune_controller: Any) -> None:
        """Tells the searcher which trials are paused by now; a place that gets free is for a promoted trial first.

        A trial that was paused without a checkpoint would silently start again when it goes on.
        """
        for trial_id, trial in list(self._pausing.items()):
            if trial.status != Trial.PAUSED or trial.is_saving:
                continue
            del self._pausing[trial_id]
            self._paused.add(trial_id)
            self._tell_searcher(tune_controller, "on_pause", trial)
            goes_on = trial_id not in self.fold.losers
            if trial.checkpoint is None and goes_on and self.on_missing_checkpoint == "error":
                raise StudyError(
                    f"trial {trial_id} was paused but has reported no checkpoint, so it can't go on later. Report "
                    f"one, `tune.report(metrics, checkpoint=...)`, or set scheduler.on_missing_checkpoint=restart "
                    f"to train promoted trials again from the start{self._without_checkpoints}"
                )

    def _check_progress(self) -> None:
        """Raises when nothing runs, nothing is pending, and the searcher gives no trial that a rung waits for."""
        if not self._trials or self.fold.losers or len(self._paused) < len(self._trials):
            self._idle_steps = 0
            return
        self._idle_steps += 1
        if self._idle_steps > _PATIENCE and (waits_for := self.core.waits_for()):
            raise StudyError(
                f"{waits_for}, but the searcher gives none and nothing is running: max_concurrent_trials counts "
                f"paused trials. Take it out of TuneConfig, or use a searcher of hpo_ray.searchers, which doesn't "
                f"count them"
            )


def _is_saved(trial: Trial) -> bool:
    return trial.status == Trial.PAUSED and not trial.is_saving


class FIFO(CoreScheduler):
    """Trains every trial to `max_resource`.

    Args:
        max_resource: where a trial stops, in whole units of `time_attr`.
        metric: see `CoreScheduler`.
        mode: see `CoreScheduler`.
        time_attr: see `CoreScheduler`.
    """

    Core: ClassVar = FIFOCore

    def __init__(
        self,
        max_resource: int,
        metric: str | None = None,
        mode: str | None = None,
        time_attr: str = "training_iteration",
    ) -> None:
        super().__init__(FIFOCore(max_resource), metric, mode, time_attr)


class SuccessiveHalving(CoreScheduler):
    """Synchronous successive halving (Jamieson and Talwalkar, AISTATS 2016).

    `bracket_size` trials are trained to a first resource; the best 1/eta of them go on with eta times more, and so
    on up to `max_resource`. When more trials come, they fill another bracket of the same kind. Ray Tune has no
    synchronous successive halving.

    Args:
        max_resource: R, the most that a trial may get, in whole units of `time_attr`.
        min_resource: the least that a trial gets.
        eta: of each rung 1/eta of the trials go on. At least 2.
        bracket_size: trials at the bottom of a bracket; by default eta^s_max, which leaves one at the top.
        metric: see `CoreScheduler`.
        mode: see `CoreScheduler`.
        time_attr: see `CoreScheduler`.
        on_missing_checkpoint: see `CoreScheduler`.

    Raises:
        ConfigError: a number is out of its range.
    """

    Core: ClassVar = SuccessiveHalvingCore

    def __init__(
        self,
        max_resource: int,
        min_resource: int = 1,
        eta: int = 3,
        bracket_size: int | None = None,
        metric: str | None = None,
        mode: str | None = None,
        time_attr: str = "training_iteration",
        on_missing_checkpoint: str = "error",
    ) -> None:
        core = SuccessiveHalvingCore(max_resource, min_resource, eta, bracket_size)
        super().__init__(core, metric, mode, time_attr, on_missing_checkpoint)


class Hyperband(CoreScheduler):
    """Hyperband (Li et al., JMLR 2018), by its Algorithm 1.

    Brackets are filled from the most exploratory to plain training, each rung waits for its bracket, and after the
    last bracket the first comes again for as long as there are trials. `hyperband_brackets` gives the numbers.
    Ray's `HyperBandScheduler` differs in all three, rounds rungs up, and hangs when the last unfinished trial of
    a rung fails.

    Args:
        max_resource: R, the most that a trial may get, in whole units of `time_attr`.
        min_resource: the least that a trial gets.
        eta: of each rung 1/eta of the trials go on. At least 2.
        metric: see `CoreScheduler`.
        mode: see `CoreScheduler`.
        time_attr: see `CoreScheduler`.
        on_missing_checkpoint: see `CoreScheduler`.

    Raises:
        ConfigError: a number is out of its range.
    """

    Core: ClassVar = HyperbandCore

    def __init__(
        self,
        max_resource: int,
        min_resource: int = 1,
        eta: int = 3,
        metric: str | None = None,
        mode: str | None = None,
        time_attr: str = "training_iteration",
        on_missing_checkpoint: str = "error",
    ) -> None:
        core = HyperbandCore(max_resource, min_resource, eta)
        super().__init__(core, metric, mode, time_attr, on_missing_checkpoint)


class ASHA(CoreScheduler):
    """Asynchronous successive halving (Li et al., MLSys 2020).

    By `variant="promotion"`, the paper's Algorithm 2, a trial is paused at each rung (R / eta^k rounded down, from the
    lowest that is not below `min_resource` up to R; the paper counts from the bottom, which is the same when R is
    `min_resource` times a power of eta). When a worker is free, the rungs are scanned from the top down for a paused
    trial among the best floor(|rung| / eta) of its rung; if there is none, a new trial starts. When no more trials come
    and none can move up, those that are paused end. Ray's `ASHAScheduler` has the stopping variant only, in which a
    loss that is not finite or that ties never stops a trial.

    By `variant="stopping"` nothing is paused, so no checkpoints are needed: at each rung a trial ends unless it is
    among the best 1/eta so far, the first eta - 1 trials of a rung always going on (Klein et al. 2020).

    Args:
        max_resource: R, the most that a trial may get, in whole units of `time_attr`.
        min_resource: the least that a trial gets.
        eta: of each rung 1/eta of the trials go on. At least 2.
        brackets: how many brackets, from the most exploratory on, new trials are spread over at random, in proportion
            to what Hyperband starts in each. More than 1 is asynchronous Hyperband.
        variant: `promotion` or `stopping`.
        seed: decides which trial starts in which bracket.
        metric: see `CoreScheduler`.
        mode: see `CoreScheduler`.
        time_attr: see `CoreScheduler`.
        on_missing_checkpoint: see `CoreScheduler`.

    Raises:
        ConfigError: a number is out of its range.
    """

    Core: ClassVar = ASHACore
    _without_checkpoints: ClassVar[str] = ", or scheduler.variant=stopping, which pauses none"

    def __init__(
        self,
        max_resource: int,
        min_resource: int = 1,
        eta: int = 3,
        brackets: int = 1,
        variant: str = "promotion",
        seed: int = 0,
        metric: str | None = None,
        mode: str | None = None,
        time_attr: str = "training_iteration",
        on_missing_checkpoint: str = "error",
    ) -> None:
        core = ASHACore(max_resource, min_resource, eta, brackets, variant, seed)
        super().__init__(core, metric, mode, time_attr, on_missing_checkpoint)
        self.room = self._one_at_a_time


class MedianStopping(CoreScheduler):
    """The median stopping rule (Golovin et al., Google Vizier, KDD 2017, section 3.2.1).

    At each report from `min_resource` on, a trial ends if the best that it has reported so far is strictly worse than
    the median of the completed trials' running averages. Nothing is paused, so no checkpoints are needed.

    *Completed* at resource s is each trial that has ended, whether it was trained in full, was stopped or ended by
    itself, and has reported at s or beyond: those that were stopped take part as far as they got. Trials that still run
    don't take part, nor do those that failed. Its *running average* at s is the mean of all its reports up to s. With
    an even number of trials the median is the mean of the two in the middle.

    Ray's `MedianStoppingRule` counts seconds unless told otherwise, takes part of what trials report while they run
    into the median, counts the last report of a trial twice, and leaves the reports before its grace period out.

    Args:
        max_resource: where a trial stops at the latest, in whole units of `time_attr`.
        min_resource: the least that a trial gets.
        min_trials: how many completed trials there must be at a resource before a trial may be stopped there.
        metric: see `CoreScheduler`.
        mode: see `CoreScheduler`.
        time_attr: see `CoreScheduler`.

    Raises:
        ConfigError: a number is out of its range.
    """

    Core: ClassVar = MedianStoppingCore

    def __init__(
        self,
        max_resource: int,
        min_resource: int = 1,
        min_trials: int = 5,
        metric: str | None = None,
        mode: str | None = None,
        time_attr: str = "training_iteration",
    ) -> None:
        super().__init__(MedianStoppingCore(max_resource, min_resource, min_trials), metric, mode, time_attr)
