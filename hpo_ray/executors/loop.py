"""The run loop: one for every executor. Signals, budgets, the log, the view; Ray's controller does the rest."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from ray.tune import PlacementGroupFactory, register_trainable

from hpo_ray.best import holds_best, save_best, save_config, test_best
from hpo_ray.clusters.nodes import Request
from hpo_ray.commands import report_command, resume_command
from hpo_ray.errors import ConfigError, StudyError
from hpo_ray.events import FILE_NAME, Event, EventLog, StudyEnded, StudyResumed, StudyStarted, read, repair
from hpo_ray.executors.binding import bind, can_save, own_request
from hpo_ray.executors.disk import DiskFull, is_full
from hpo_ray.executors.internals import Controller, check_ray
from hpo_ray.executors.keeper import Checkpoints, Disk, Keeper
from hpo_ray.executors.mirror import Mirror
from hpo_ray.executors.outage import StoreDown, find_outage, insist
from hpo_ray.executors.recorder import CheckpointRecorder, Recorder
from hpo_ray.executors.resuming import RepeatedLog, check_resumable, cut_off, feed, goes_on_at, take_up
from hpo_ray.executors.signals import Interrupted, Signals, signals_of
from hpo_ray.executors.source import TrialSource
from hpo_ray.location import Location
from hpo_ray.results import REPORT_FILE, RESULT_FILE, StudyResult, StudyState, fold, load_study
from hpo_ray.schedulers.adapter import CoreScheduler
from hpo_ray.searchers.adapter import SpaceSearcher
from hpo_ray.store.projection import Projection
from hpo_ray.store.storage import Store
from hpo_ray.study import Draft, Study, tracker_of, tracker_section, versions
from hpo_ray.trackers.following import Following
from hpo_ray.view import View

_STORE_S, _TRACKER_S, _INTERRUPTED_S = 10.0, 30.0, 0.5
"""How long the end of a study waits for its store and its tracker, which get what lacks later."""


def run(study: Study, view: View, folder: Path | None = None) -> StudyResult:
    """Runs a study to its end, and writes what it leaves behind.

    Args:
        study: what to run.
        view: what a person sees meanwhile.
        folder: that of a study which is taken up where its log ends; None for a new one.

    Raises:
        ConfigError: the resources asked for are not there, or the study's folder can't be made. Nothing was written.
        StudyError: the study could not go on. Its log and results are written all the same.
    """
    check_ray()
    location = study.draft.location
    if location is not None:
        location.check()
    if folder is None:
        study.draft.free_name()  # a name that is taken is better known before a cluster is started
    else:
        check_resumable(study)
    timeout_s = study.executor.call_timeout(study.draft.budget.trial_timeout_s)
    trainable = bind(study.trainable, study.context, timeout_s, study.time_attr)
    with signals_of(study.executor, view) as signals:
        resources, capacity = _start(study, trainable)
        signals.listen()
        study.executor.check(study.trainable, location or Path(study.draft.root).resolve())
        try:
            concurrency = _at_a_time(study, capacity)
            home = folder or _make_folder(study.draft)
            if not view.silent:
                signals.last_words = f"interrupted; to go on: {resume_command(home)}"
            with closing(EventLog(home / FILE_NAME)) as log:
                if folder is not None:
                    repair(log.path)
                    save_config(home, study.draft.config)  # its budget may have grown
                events = read(log.path) if log.path.stat().st_size else []
                mirror = None if location is None else Mirror(home, location.join(home.name))
                store = Store.of(study.draft.config)
                section = tracker_section(study.draft.config)
                with (
                    mirror or nullcontext(),
                    Projection(home, study.draft.space, store) as projection,
                    Following(home, study.tracker, section) as following,
                ):
                    this = _Run(study, trainable, home, resources, concurrency, mirror)
                    result = _run(this, log, events, projection, view, signals)
                    interrupted = result.state.ended is not None and result.state.ended.state == "interrupted"
                    note = following.close(_INTERRUPTED_S if interrupted else _TRACKER_S)  # it wants the best files
                    return replace(result, tracker_note=note)
        finally:
            study.executor.stop()


@dataclass(frozen=True)
class _Run:
    """A study that has its folder and resources.

    Attributes:
        resources: what one trial gets; None where the trainable says so itself.
        mirror: its copy on an object store; None if there is none.
    """

    study: Study
    trainable: type
    folder: Path
    resources: PlacementGroupFactory | None
    concurrency: int
    mirror: Mirror | None = None

    @property
    def checkpoints(self) -> Checkpoints:
        """Where those of its trials lie."""
        return Disk(self.folder) if self.location is None else cast(Mirror, self.mirror)

    @property
    def location(self) -> Location | None:
        """The study's folder on an object store, if that holds its trials' checkpoints."""
        return None if self.mirror is None or self.study.executor.in_memory else self.mirror.location


def _start(study: Study, trainable: type) -> tuple[PlacementGroupFactory | None, int]:
    """Starts the executor; what one trial gets, and how many fit at a time."""
    space = study.draft.space
    try:
        own = own_request(trainable, space.from_units([0.5] * len(space)))
    except Exception as error:  # of the user's code
        raise ConfigError(
            f"task.trainable={study.draft.task.trainable}: its default_resource_request raised "
            f"{type(error).__name__}: {error}",
            key="task.trainable",
        ) from error
    if own is None:
        request = Request.of(study.draft.resources)
        selector = study.draft.resources.label_selector
        several = {"bundle_label_selector": [selector] * len(request.bundles)} if selector else {}
        factory = PlacementGroupFactory(list(request.bundles), strategy=request.strategy, **several)
        return factory, study.executor.start(request)
    try:
        return None, study.executor.start(Request(own.bundles, own.strategy))
    except ConfigError as error:
        raise ConfigError(f"{study.draft.task.trainable} asks for its own resources: {error}", error.key) from None


def _at_a_time(study: Study, capacity: int) -> int:
    """How many trials run at a time where there is room for so many."""
    return min(capacity, study.draft.budget.concurrency or capacity)


def _run(
    this: _Run, log: EventLog, events: list[Event], projection: Projection, view: View, signals: Signals
) -> StudyResult:
    """Runs a study, or the rest of one: `events` are what its log holds."""
    study, folder = this.study, this.folder
    state = StudyState()
    started = events[0] if events else _started(study.draft, folder, this.concurrency)
    resumed = StudyResumed(0.0, time.time(), study.draft.config["budget"], versions(), command=study.draft.command)
    simulated = study.executor.in_memory  # its checkpoints are gone, and its time costs nothing: it runs again
    clock = study.executor.clock(0.0 if simulated or not events else goes_on_at(events))
    repeated: RepeatedLog | None = None
    if simulated and events:
        repeated = RepeatedLog(log, events, resumed, _names_that_count(study.draft))
    elif events:
        feed(study, state, events)
    append = repeated.append if repeated else log.append
    heard = events if repeated is None else []
    recorder = Recorder(study, append, state, folder, clock, this.checkpoints, heard)
    if repeated is None:
        for name in (RESULT_FILE, REPORT_FILE):  # of before, if the study had ended
            (folder / name).unlink(missing_ok=True)
    signals.last_act = lambda: _end_at_once(log, repeated, state, clock())
    dying = cut_off(state) if study.executor.name == "inprocess" else []  # elsewhere a trial takes its worker only
    recorder.append(replace(resumed, time=clock(), cut_off=dying) if events and not repeated else started)
    if recorder.error is not None:
        raise recorder.error
    failures: list[Exception] = []
    controller: Controller | None = None
    try:
        if this.mirror is not None:
            insist(this.mirror.copy, this.mirror.location)  # so that others know soon that somebody is at it
        controller, source = _controller(this, recorder)
        if events and repeated is None:
            take_up(study, events, dying, folder, recorder, source, controller, this.checkpoints)
        view.start(study.draft, folder)
        ended, reason = _loop(controller, recorder, source, this, view, signals)
        if ended == "finished" and state.best is None:
            raise StudyError(_no_value(state, study.draft))
    except Exception as error:  # whatever it is, the log says that the study failed, and why
        failure = DiskFull(folder) if is_full(error) and not isinstance(error, StudyError) else error
        if outage := find_outage(error):
            failure = outage.advised(folder)
        failures.append(failure)
        ended, reason = "interrupted" if isinstance(failure, DiskFull | StoreDown) else "failed", str(failure)
    finally:
        view.stop()
        if controller is not None:
            controller.close()
    model = _model(study, state) if ended == "finished" else None
    recorder.append(StudyEnded(ended, reason, clock(), study.executor.summary(), model))
    note = projection.close(_INTERRUPTED_S if ended == "interrupted" else _STORE_S)
    if repeated is not None and repeated.behind:  # what the log says is more than what has come again
        if failures:
            raise failures[0]
        return StudyResult(folder, fold([*events, StudyEnded(ended, reason, goes_on_at(events))]), store_note=note)
    result = _leave(folder, state, failures, ended == "finished", note, this.location)
    if ended == "interrupted":
        (folder / REPORT_FILE).unlink(missing_ok=True)  # somebody may have asked for one while it ran
    elif _wants_report(study.draft):
        if signals.last_words:  # the study itself is over
            signals.last_words = f"all is saved but the report: {report_command(folder)}"
        result = _report(result)
    if failures:
        if isinstance(failures[0], StudyError) and (folder / REPORT_FILE).is_file():
            failures[0].report = folder / REPORT_FILE
        raise failures[0]
    return result


def _end_at_once(log: EventLog, repeated: RepeatedLog | None, state: StudyState, now: float) -> None:
    """Records that a signal ends the process, so that nobody takes it for a death."""
    if repeated is None and state.ended is None:
        log.append(StudyEnded("interrupted", "a signal ended it at once", now))


def complete(folder: Path, draft: Draft) -> StudyResult:
    """Writes what a study that has finished should have left, and has not, and tells its tracker what that lacks.

    Its process died at the very end, or the tracker was down.

    Args:
        folder: its folder.
        draft: what it is.

    Raises:
        ConfigError: its tracker can't be.
        StudyError: there is no room for it, or its store can't be reached.
    """
    tracker = tracker_of(draft.config)
    with Following(folder, tracker, tracker_section(draft.config)) as following:
        result = _complete(folder, draft)
        return replace(result, tracker_note=following.close(_TRACKER_S))


def _complete(folder: Path, draft: Draft) -> StudyResult:
    location = None if draft.location is None else draft.location.join(folder.name)
    mirror = None if location is None else Mirror(folder, location)
    with closing(EventLog(folder / FILE_NAME)) as log:
        repair(log.path)
        events = read(log.path)
        state = fold(events)
        with mirror or nullcontext():
            lying = None if draft.virtual_workers else location
            Keeper(folder, draft.keep_checkpoints, state, mirror if lying is not None else None, events)
            known = load_study(folder)
            whole = (folder / RESULT_FILE).exists() and (state.best is None or holds_best(folder, state.best))
            if whole and (known.test_metrics is not None or known.test_error is not None or state.best is None):
                return known
            failures: list[Exception] = []
            result = _leave(folder, state, failures, finished=True, note=None, location=lying, keep_best=True)
            if failures:
                raise failures[0]
            if _wants_report(draft):
                result = _report(result)
    return result


def _leave(
    folder: Path,
    state: StudyState,
    failures: list[Exception],
    finished: bool,
    note: str | None,
    location: Location | None,
    keep_best: bool = False,
) -> StudyResult:
    """Writes the results, and tests the best trial of a study that has finished; adds what goes wrong to `failures`."""
    result = StudyResult(folder, state, store_note=note)
    saved = False
    with _noting_failures(folder, location, failures):
        best = state.best
        there = keep_best and best is not None and holds_best(folder, best)  # its checkpoint may have gone since
        if best is not None and not there and location is not None:
            patience_s = 0.0 if failures else None
            saved = insist(lambda: save_best(folder, best, location), location, patience_s)
        else:
            saved = there or (best is not None and save_best(folder, best))
    with _noting_failures(folder, None, failures):
        result.write()  # before the test, which may take long or fail
    if saved and not failures and finished:
        try:
            result = replace(result, test_metrics=test_best(folder))
        except Exception as error:  # of the user's code; the study itself is done
            result = replace(result, test_error=f"{type(error).__name__}: {error}")
        with _noting_failures(folder, None, failures):
            result.write()
    return result


def _wants_report(draft: Draft) -> bool:
    return bool(draft.config.get("report", True))  # a study that is older than the key


def _report(result: StudyResult) -> StudyResult:
    """Writes the report of a study that is over; with `report_note` where that can't be: it costs nobody the study."""
    try:
        from hpo_ray.report.writing import write_report

        write_report(result)
    except Exception as error:
        return replace(result, report_note=f"could not be written: {type(error).__name__}: {error}")
    return result


@contextmanager
def _noting_failures(folder: Path, location: Location | None, failures: list[Exception]) -> Iterator[None]:
    """Adds to the failures that there was no room for what the block writes, or that the store couldn't be reached."""
    try:
        yield
    except (OSError, StoreDown) as error:
        if is_full(error):
            failures.append(DiskFull(folder))
        elif location is not None:
            outage = error if isinstance(error, StoreDown) else StoreDown.of(location, error)
            failures.append(outage.advised(folder))
        else:
            raise


def _loop(
    controller: Controller, recorder: Recorder, source: TrialSource, this: _Run, view: View, signals: Signals
) -> tuple[str, str]:
    """Steps until the study is over; how it ended, and why."""
    study = this.study
    budget, in_memory = study.draft.budget, study.executor.in_memory
    while not controller.is_finished():
        if (capacity := study.executor.capacity()) is not None:  # nodes come and go
            source.concurrency = _at_a_time(study, capacity)
            controller.keep_actors(source.concurrency, _paused(controller, study) if source.is_finished() else None)
        try:
            with suppress(Interrupted):
                controller.step()
        except Exception:
            if recorder.error is None:  # of what came first, the rest is a consequence
                raise
        elapsed_s = recorder.clock()
        view.update(recorder.state, elapsed_s)
        overtaken = this.mirror.overtaken if this.mirror is not None else None
        if error := overtaken or recorder.error or controller.study_error:
            raise error
        if signals.received is not None:
            if not in_memory:
                controller.save_running(recorder.has_unsaved, signals.since_s + signals.SAVE_S)
            return "interrupted", f"{signal.Signals(signals.received).name} received"
        if recorder.target_reached:
            return "finished", f"budget.target={budget.target:g} reached"
        if budget.time_s is not None and elapsed_s >= budget.time_s:
            return "finished", f"budget.time_s={budget.time_s:g} used up"
        if budget.resource is not None and recorder.state.trained - recorder.state.again >= budget.resource:
            return "finished", f"budget.resource={budget.resource} used up"
    return "finished", "all trials are done"


def _paused(controller: Controller, study: Study) -> int:
    """How many paused trials may go on, at most."""
    scheduler = study.scheduler
    return scheduler.may_go_on() if isinstance(scheduler, CoreScheduler) else controller.num_paused


def _model(study: Study, state: StudyState) -> Mapping[str, Any] | None:
    """What the searcher's model says of the best trial; None if it has none, or can't say."""
    if state.best is None or not isinstance(study.searcher, SpaceSearcher):
        return None
    try:
        return study.searcher.explain(state.best.config) or None
    except Exception:  # a model that can't be fitted must not cost the study its end
        return None


def _started(draft: Draft, folder: Path, workers: int) -> StudyStarted:
    return StudyStarted(
        study=folder.name,
        method=draft.method,
        task=draft.task.name,
        metric=draft.task.metric,
        mode=draft.task.mode,
        seed=draft.seed,
        max_resource=draft.max_resource,
        time=time.time(),
        versions=versions(),
        command=draft.command,
        workers=workers,
        metrics=draft.task.metrics,
        reference=draft.task.reference,
        constraints=draft.task.constraints,
    )


def _names_that_count(draft: Draft) -> tuple[str, ...]:
    return (draft.task.metric, *draft.task.metrics, *draft.task.constraints)


def _controller(this: _Run, recorder: Recorder) -> tuple[Controller, TrialSource]:
    study, folder, budget = this.study, this.folder, this.study.draft.budget
    register_trainable(folder.name, this.trainable)
    storage = study.executor.storage(folder, trackers=bool(study.callbacks), location=this.location)
    source = TrialSource(
        study.searcher,
        trainable=this.trainable,
        trainable_name=folder.name,
        storage=storage,
        resources=this.resources,
        limit=study.draft.plan.trials,
        concurrency=this.concurrency,
        max_failures=study.max_retries,
        checkpoint_at_end=(
            not study.executor.in_memory and isinstance(study.trainable, type) and can_save(study.trainable)
        ),
        metric=study.draft.task.metric,
    )
    controller = Controller(
        search_alg=source,
        scheduler=recorder,
        callbacks=[CheckpointRecorder(recorder), *study.callbacks],
        storage=storage,
        max_pending=this.concurrency,
        actor_manager=study.executor.actor_manager(study.time_attr, budget.time_s, budget.trial_timeout_s),
        trial_timeout_s=budget.trial_timeout_s,
        report_every_s=study.executor.report_every_s,
    )
    controller.checkpoint_is_due = recorder.checkpoint_is_due
    controller.max_lost_nodes = study.draft.config["failure"].get("max_lost_nodes", 0)
    controller.resources = this.resources
    controller.keep_actors(this.concurrency, None)
    source.active = lambda: controller.num_active
    if isinstance(study.scheduler, CoreScheduler):
        source.promotions = study.scheduler.promotions
        study.scheduler.room = source.room
    return controller, source


def _make_folder(draft: Draft) -> Path:
    """Makes the study's folder, and writes the configuration into it.

    The name is settled here: of two studies that start at the same moment, the second takes the next number.
    """
    while True:
        folder = Path(draft.root, draft.free_name()).resolve()
        try:
            folder.mkdir(parents=True, exist_ok=False)
        except FileExistsError:
            if draft.name is not None and not folder.is_dir():
                raise ConfigError(f"study.root={draft.root}: is not a folder", key="study.root") from None
            continue
        except OSError as error:
            raise ConfigError(
                f"study.root={draft.root}: can't be written: {error.strerror}", key="study.root"
            ) from None
        break
    try:
        save_config(folder, draft.config)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise ConfigError(f"study.root={draft.root}: can't be written: {error.strerror}", key="study.root") from None
    return folder


def _no_value(state: StudyState, draft: Draft) -> str:
    """Why no trial has a value."""
    failed = [trial for trial in state.trials.values() if trial.state == "failed"]
    beyond = [trial for trial in state.trials.values() if trial.feasible is False]
    if beyond:
        bounds = dict(draft.task.constraints)
        return f"task.constraints={bounds}: none of the {len(beyond)} trials that reported keeps them; widen the bounds"
    if not failed:
        return f"no trial reported {draft.task.metric}"
    first = failed[0]
    return f"all {len(failed)} trials failed; the first, trial {first.number}, with:\n{first.error}"
