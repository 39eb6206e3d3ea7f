"""The run loop: one for every executor. Signals, budgets, the log, the view; Ray's controller does the rest."""

from __future__ import annotations

import os
import platform
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from ray.tune import PlacementGroupFactory, register_trainable

from hpo_ray.best import save_best, save_config, test_best
from hpo_ray.errors import ConfigError, StudyError
from hpo_ray.events import FILE_NAME, EventLog, StudyEnded, StudyStarted
from hpo_ray.executors.base import Executor, Resources
from hpo_ray.executors.binding import bind, can_save, own_request
from hpo_ray.executors.internals import Controller, check_ray
from hpo_ray.executors.recorder import CheckpointRecorder, Recorder
from hpo_ray.executors.source import TrialSource
from hpo_ray.results import StudyResult, StudyState
from hpo_ray.schedulers.adapter import CoreScheduler
from hpo_ray.schedulers.brackets import Budget
from hpo_ray.searchers.adapter import SpaceSearcher
from hpo_ray.store.projection import Projection
from hpo_ray.store.storage import Store
from hpo_ray.study import Draft, Study
from hpo_ray.view import View

_STORE_S, _INTERRUPTED_S = 10.0, 0.5
"""How long the end of a study waits for its store, which gets what lacks later."""


def run(study: Study, view: View) -> StudyResult:
    """Runs a study to its end, and writes what it leaves behind.

    Args:
        study: what to run.
        view: what a person sees meanwhile.

    Raises:
        ConfigError: the resources asked for are not there, or the study's folder can't be made. Nothing was written.
        StudyError: the study could not go on. Its log and results are written all the same.
    """
    check_ray()
    study.draft.free_name()  # a name that is taken is better known before a cluster is started
    trainable = bind(study.trainable, study.context)
    with _signals(study.executor, view) as signals:
        resources, capacity = _start(study, trainable)
        try:
            folder = _make_folder(study.draft)
            concurrency = min(capacity, study.draft.budget.concurrency or capacity)
            return _run(_Run(study, trainable, folder, resources, concurrency), view, signals)
        finally:
            study.executor.stop()


@dataclass(frozen=True)
class _Run:
    """A study that has its folder and resources.

    Attributes:
        resources: what one trial gets; None where the trainable says so itself.
    """

    study: Study
    trainable: type
    folder: Path
    resources: PlacementGroupFactory | None
    concurrency: int


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
        asked = Resources(study.context.cpus, study.context.gpus)
        return PlacementGroupFactory([{"CPU": asked.cpu, "GPU": asked.gpu}]), study.executor.start(asked)
    asked = Resources(own.required_resources.get("CPU", 0.0), own.required_resources.get("GPU", 0.0))
    try:
        return None, study.executor.start(asked)
    except ConfigError as error:
        raise ConfigError(f"{study.draft.task.trainable} asks for its own resources: {error}", error.key) from None


def _run(this: _Run, view: View, signals: _Signals) -> StudyResult:
    study, folder = this.study, this.folder
    clock = study.executor.clock()
    state = StudyState()
    store = Store.of(study.draft.config)
    with closing(EventLog(folder / FILE_NAME)) as log, Projection(folder, study.draft.space, store) as projection:
        recorder = Recorder(study, log, state, folder, clock)
        recorder.append(_started(study.draft, folder))
        failure: Exception | None = None
        controller: Controller | None = None
        try:
            controller = _controller(this, recorder)
            view.start(study.draft, folder)
            ended, reason = _loop(controller, recorder, study.draft.budget, view, signals)
            if ended == "finished" and state.best is None:
                raise StudyError(_no_value(state, study.draft))
        except Exception as error:  # whatever it is, the log says that the study failed, and why
            failure, ended, reason = error, "failed", str(error)
        finally:
            view.stop()
            if controller is not None:
                controller.close()
        model = _model(study, state) if ended == "finished" else None
        recorder.append(StudyEnded(ended, reason, clock(), study.executor.summary(), model))
        note = projection.close(_INTERRUPTED_S if ended == "interrupted" else _STORE_S)
    result = StudyResult(folder, state, store_note=note)
    saved = state.best is not None and save_best(folder, state.best)
    result.write()  # before the test, which may take long or fail
    if saved and ended == "finished":
        try:
            result = replace(result, test_metrics=test_best(folder))
        except Exception as error:  # of the user's code; the study itself is done
            result = replace(result, test_error=f"{type(error).__name__}: {error}")
        result.write()
    if failure is not None:
        raise failure
    return result


def _loop(controller: Controller, recorder: Recorder, budget: Budget, view: View, signals: _Signals) -> tuple[str, str]:
    """Steps until the study is over; how it ended, and why."""
    while not controller.is_finished():
        with suppress(_Interrupted):
            controller.step()
        elapsed_s = recorder.clock()
        view.update(recorder.state, elapsed_s)
        if error := recorder.error or controller.study_error:
            raise error
        if signals.received is not None:
            return "interrupted", f"{signal.Signals(signals.received).name} received"
        if recorder.target_reached:
            return "finished", f"budget.target={budget.target:g} reached"
        if budget.time_s is not None and elapsed_s >= budget.time_s:
            return "finished", f"budget.time_s={budget.time_s:g} used up"
        if budget.resource is not None and recorder.state.trained >= budget.resource:
            return "finished", f"budget.resource={budget.resource} used up"
    return "finished", "all trials are done"


def _model(study: Study, state: StudyState) -> Mapping[str, Any] | None:
    """What the searcher's model says of the best trial; None if it has none, or can't say."""
    if state.best is None or not isinstance(study.searcher, SpaceSearcher):
        return None
    try:
        return study.searcher.explain(state.best.config) or None
    except Exception:  # a model that can't be fitted must not cost the study its end
        return None


def _started(draft: Draft, folder: Path) -> StudyStarted:
    return StudyStarted(
        study=folder.name,
        method=draft.method,
        task=draft.task.name,
        metric=draft.task.metric,
        mode=draft.task.mode,
        seed=draft.seed,
        max_resource=draft.max_resource,
        time=time.time(),
        versions=_versions(),
        metrics=draft.task.metrics,
        reference=draft.task.reference,
        constraints=draft.task.constraints,
    )


def _controller(this: _Run, recorder: Recorder) -> Controller:
    study, folder = this.study, this.folder
    register_trainable(folder.name, this.trainable)
    storage = study.executor.storage(folder, trackers=bool(study.callbacks))
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
        callbacks=[CheckpointRecorder(recorder, folder), *study.callbacks],
        storage=storage,
        max_pending=this.concurrency,
        actor_manager=study.executor.actor_manager(study.time_attr, study.draft.budget.time_s),
    )
    if this.resources is not None:
        controller.keep_actors(this.resources, this.concurrency)
    source.active = lambda: controller.num_active
    if isinstance(study.scheduler, CoreScheduler):
        source.promotions = study.scheduler.promotions
        study.scheduler.room = source.room
    return controller


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
    save_config(folder, draft.config)
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


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("hpo_ray", "ray", "torch", "optuna", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


class _Interrupted(BaseException):
    """A signal came in the middle of a step that runs in this process."""


class _Signals:
    """Which signal came, if any."""

    received: int | None = None


@contextmanager
def _signals(executor: Executor, view: View) -> Iterator[_Signals]:
    """Notes the first SIGINT or SIGTERM, and interrupts a step that runs here; the second ends the process at once."""
    signals = _Signals()

    def note(number: int, frame: FrameType | None) -> None:
        if signals.received is not None:
            view.stop()
            os._exit(128 + number)
        signals.received = number
        if executor.in_step:
            raise _Interrupted

    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
