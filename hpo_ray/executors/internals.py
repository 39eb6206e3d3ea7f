"""Everything of hpo_ray that touches names which Ray keeps private, and nothing else.

Tested with Ray 2.55 to 2.60. `check_ray` compares what is used here with the Ray that is installed and names what has
moved, so a new Ray fails with one clear message instead of in the middle of a study.

Why Ray's controller and not `Tuner.fit`: a study has its own log, resume, source of trials and signals; and the
controller's only link to the outside is its actor manager, which makes room for other ways to run a trial.
"""

from __future__ import annotations

import copy
import ctypes
import os
import pickle
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow.fs
import ray
import ray._private.ray_constants as _constants
import ray._private.services as _services
import ray.train._internal.session as _session
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.air.execution._internal.event_manager import RayEventManager
from ray.air.execution._internal.tracked_actor import TrackedActor
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError
from ray.train._internal.checkpoint_manager import _CheckpointManager
from ray.train._internal.session import _FutureTrainingResult, _TrainingResult
from ray.train._internal.storage import StorageContext
from ray.tune import Checkpoint, CheckpointConfig, TuneError
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.experiment.trial import _Location
from ray.tune.result import (
    EPISODES_TOTAL,
    NODE_IP,
    PID,
    TIME_TOTAL_S,
    TIMESTEPS_TOTAL,
    TRAINING_ITERATION,
    TRIAL_ID,
)
from ray.tune.schedulers import TrialScheduler
from ray.tune.trainable import FunctionTrainable, Trainable

from hpo_ray.best import CONFIG_FILE
from hpo_ray.clusters.nodes import gone
from hpo_ray.errors import HpoRayError, StudyError
from hpo_ray.events import sync_to_disk
from hpo_ray.executors.disk import DiskFull, is_full
from hpo_ray.executors.outage import StoreDown, find_outage
from hpo_ray.trainables.checkpoint import Progress, UnreadableCheckpoint, read, write

__all__ = [
    "ActorHandle",
    "Controller",
    "Fallback",
    "MemoryCheckpoint",
    "MemoryStorage",
    "StudyStorage",
    "TrackedActor",
    "WatchedCheckpoint",
    "abandon_thread",
    "begin_anew",
    "check_ray",
    "copy_checkpoint",
    "empty_save",
    "few_tries",
    "join_thread",
    "last_metrics",
    "load_class",
    "local_heads",
    "new_trial",
    "on_loopback",
    "own_session",
    "restore_trial",
    "save_class",
    "watch_checkpoint",
]

_START_S = 60.0
"""What a process may take until it runs the user's code, beside `budget.trial_timeout_s`: Ray starts it, it imports."""
_SAID_OF = {"save": "saving", "restore": "loading a checkpoint", "reset": "setup"}
_LOCAL = pyarrow.fs.LocalFileSystem()
TESTED_RAY = ("2.55", "2.60")

_USED: dict[Any, tuple[str, ...]] = {
    TuneController: (
        "_process_trial_save",
        "_schedule_trial_save",
        "_schedule_trial_train",
        "_checkpoint_trial_if_needed",
        "_validate_result_metrics",
        "_trial_task_failure",
        "_schedule_trial_task",
        "_on_training_result",
        "_process_trial_result",
        "_maybe_execute_queued_decision",
        "_maybe_cache_trial_actor",
        "_update_trial_queue",
        "_on_trial_reset",
        "_actor_failed",
        "_unstage_trial_with_resources",
        "_set_trial_status",
        "_process_trial_failure",
        "_try_recover",
        "stop_trial",
        "_mark_trial_to_checkpoint",
        "end_experiment_callbacks",
        "checkpoint",
        "on_step_begin",
        "step",
        "is_finished",
        "cleanup",
        "_wrapped",
        "_schedule_trial_stop",
        "_remove_actor",
    ),
    RayEventManager: ("get_futures",),
    RayActorManager: ("_actor_task_failed", "remove_actor", "is_actor_started", "next", "cleanup"),
    StorageContext: (
        "_create_validation_file",
        "_check_validation_file",
        "persist_current_checkpoint",
        "_update_checkpoint_index",
        "trial_driver_staging_path",
        "trial_working_directory",
        "experiment_driver_staging_path",
        "trial_fs_path",
        "checkpoint_fs_path",
    ),
    Trainable: ("save", "restore", "save_checkpoint", "load_checkpoint"),
    FunctionTrainable: ("setup", "cleanup", "reset_config", "_setup_logdir", "get_auto_filled_metrics"),
    _session: ("_session", "get_session"),
    _constants: ("ENABLE_RAY_CLUSTER", "ENABLE_RAY_CLUSTERS_ENV_VAR", "NUM_REDIS_GET_RETRIES"),
    _services: ("find_gcs_addresses",),
    TrackedActor: ("set_on_start", "set_on_stop", "set_on_error"),
    Trial: (
        "get_trainable_cls",
        "update_last_result",
        "set_location",
        "init_local_path",
        "handle_error",
        "pickled_error_file",
        "on_checkpoint",
        "latest_checkpoint_result",
        "set_config",
    ),
    _CheckpointManager: ("latest_checkpoint_result", "register_checkpoint", "best_checkpoint_results"),
}


def check_ray() -> None:
    """Raises `StudyError` if the Ray that is installed lacks a name that this module uses."""
    missing = [f"{owner.__name__}.{n}" for owner, names in _USED.items() for n in names if not hasattr(owner, n)]
    if missing:
        raise StudyError(
            f"Ray {ray.__version__} has moved {', '.join(missing)}, which hpo_ray needs; "
            f"install a Ray that it was tested with: pip install 'ray[tune]>={TESTED_RAY[0]},<={TESTED_RAY[1]}.*'"
        )


@contextmanager
def on_loopback() -> Iterator[None]:
    """Within it, a local cluster that is started listens on 127.0.0.1 only, all of its processes do.

    Ray binds each of its servers (GCS, raylet, workers, the driver itself) to all interfaces, unless the node's address
    is 127.0.0.1; and it replaces that address by the machine's own wherever a node might be joined by others, which is
    everywhere but on macOS and Windows. Its processes read the environment variable that says so, this one has it read
    already. Outside of the block nothing has changed: a driver may join a real cluster later.
    """
    name, before = _constants.ENABLE_RAY_CLUSTERS_ENV_VAR, _constants.ENABLE_RAY_CLUSTER
    typed = os.environ.get(name)
    os.environ[name], _constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        _constants.ENABLE_RAY_CLUSTER = before
        if typed is None:
            del os.environ[name]
        else:
            os.environ[name] = typed


@contextmanager
def few_tries(number: int = 5) -> Iterator[None]:
    """Within it, Ray gives up a head that doesn't take its token after so many tries, one a second, and not 20."""
    before, _constants.NUM_REDIS_GET_RETRIES = _constants.NUM_REDIS_GET_RETRIES, number
    try:
        yield
    finally:
        _constants.NUM_REDIS_GET_RETRIES = before


def local_heads() -> list[str]:
    """The addresses of the Ray clusters that this machine is part of."""
    return sorted(_services.find_gcs_addresses())


class StudyStorage(StorageContext):  # type: ignore[misc]  # ray ships no types
    """Ray's storage, laid out as a study's folder: `<root>/<study>/trials/<number>/`.

    Ray stages files in its session's folder, which needs a running cluster, and copies checkpoints twice. Here they
    lie in the study's folder at once, and a checkpoint appears whole: it is written aside and renamed.
    """

    kept: int | None = 2
    """How many checkpoints of a trial Ray leaves; None where it is to remove none."""

    def _create_validation_file(self) -> None:
        self.storage_filesystem.create_dir(self.experiment_fs_path)

    def _check_validation_file(self) -> None:
        pass

    @property
    def experiment_fs_path(self) -> str:
        """The study's folder."""
        return f"{self.storage_fs_path}/{self.experiment_dir_name}"

    @property
    def trial_fs_path(self) -> str:
        """The trial's folder. Asked for several times a trial, which is why it is put together as text."""
        return f"{self.experiment_fs_path}/{self.trial_dir_name}"

    @property
    def experiment_driver_staging_path(self) -> str:
        """The study's folder."""
        return self.experiment_fs_path

    @property
    def trial_driver_staging_path(self) -> str:
        """The trial's folder."""
        return self.trial_fs_path

    @property
    def trial_working_directory(self) -> str:
        """The trial's folder."""
        return self.trial_fs_path

    def aside(self) -> Path:
        """A folder, beside the trial's checkpoints, to write the next one into."""
        return Path(self.trial_working_directory, f".saving-{os.getpid()}")

    def enter(self) -> None:
        """A trial comes to this process.

        Raises:
            StoreDown: the study's folder isn't seen here, on another machine, which would make one of its own.
        """
        folder = Path(self.experiment_fs_path)
        if not (folder / CONFIG_FILE).is_file():
            raise StoreDown(
                f"{folder}: node {socket.gethostname()} doesn't see this folder of the study. Set store.root to a "
                f"folder on a file system that all nodes see, or to an object store, s3://bucket/prefix"
            )

    def leave(self) -> None:
        """The trial leaves this process."""

    def bring_output(self, path: Path) -> None:
        """Brings what a trial has printed so far, before it prints more to `path`."""

    def share_output(self, path: Path) -> None:
        """Puts what a trial has printed to `path` where others see it."""

    def bring(self, saved: Any) -> Any:
        """What was saved, on this machine's disk."""
        return saved

    def checkpoint(self, path: str) -> Checkpoint:
        """The checkpoint of a path as the log has it: relative to the study's folder, or absolute."""
        return Checkpoint(os.path.join(self.experiment_fs_path, path), self.storage_filesystem)

    def discard(self, checkpoint: Checkpoint) -> None:
        """Removes a checkpoint of this trial that can't be read; the log says so by now."""
        if Path(checkpoint.path).parent == Path(self.trial_fs_path):
            shutil.rmtree(checkpoint.path, ignore_errors=True)

    def persist_current_checkpoint(self, checkpoint: Checkpoint) -> Checkpoint:
        """Moves a checkpoint that was written `aside` to its place, and copies any other to it."""
        aside, place = self.aside(), Path(self.checkpoint_fs_path)
        if Path(checkpoint.path) != aside:
            shutil.rmtree(aside, ignore_errors=True)
            try:
                shutil.copytree(checkpoint.path, aside)
            except BaseException:
                shutil.rmtree(aside, ignore_errors=True)
                raise
        # A retried trial writes a checkpoint of the same name again.
        shutil.rmtree(place, ignore_errors=True)
        _sync(aside)  # before it is renamed and then logged, so that what is on record survives a loss of power
        aside.rename(place)
        sync_to_disk(place.parent)
        return Checkpoint(path=str(place), filesystem=self.storage_filesystem)


class MemoryCheckpoint(Checkpoint):  # type: ignore[misc]  # ray ships no types
    """What a trainable saved, held in memory.

    Args:
        files: content by path relative to the checkpoint's folder.
        state: what `save_checkpoint` returned, pickled, if that was a dictionary.
        scratch: a folder that is there, in which the files may be laid out for those who read them.
    """

    def __init__(self, files: dict[str, bytes], state: bytes | None, scratch: str) -> None:
        self.files, self.state = files, state
        self.path, self.filesystem = scratch, _LOCAL
        self._uuid = None  # only for downloads

    def to_directory(self, path: str | os.PathLike[str] | None = None) -> str:
        """Writes the files to a folder, by default a new one."""
        folder = Path(path) if path is not None else Path(tempfile.mkdtemp(dir=self.path))
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return str(folder)

    @contextmanager
    def as_directory(self) -> Iterator[str]:
        """A folder with the files, for the length of the block."""
        folder = self.to_directory()
        try:
            yield folder
        finally:
            shutil.rmtree(folder)


class WatchedCheckpoint(Checkpoint):  # type: ignore[misc]  # ray ships no types
    """A function's checkpoint, which notes what was raised while the function had it open."""

    raised: Exception | None = None

    @contextmanager
    def as_directory(self) -> Iterator[str]:
        """See Ray's."""
        with super().as_directory() as folder:
            try:
                yield folder
            except Exception as error:
                self.raised = error
                raise


def watch_checkpoint() -> WatchedCheckpoint | None:
    """Puts a watched checkpoint in place of the one that the session has loaded; None if it can't be watched."""
    session = _session.get_session()
    loaded = getattr(session, "loaded_checkpoint", None)
    if loaded is None or isinstance(loaded, MemoryCheckpoint):
        return None
    watched = session.loaded_checkpoint = WatchedCheckpoint(loaded.path, loaded.filesystem)
    return watched


class MemoryStorage(StudyStorage):
    """Keeps checkpoints in memory, and makes folders for trials only where trackers write into them."""

    folders: bool = False
    scratch: str
    """An empty folder, for the moments in which a trainable writes or reads a checkpoint."""

    def enter(self) -> None:
        """Nothing: there need not be a folder."""

    def persist_current_checkpoint(self, checkpoint: Checkpoint) -> MemoryCheckpoint:
        """Reads the files that a function has reported."""
        return MemoryCheckpoint(_read_files(checkpoint.path), None, self.scratch)

    def save(self, trainable: Any) -> _TrainingResult:
        """Saves a class trainable, without a file if its `save_checkpoint` returns a dictionary."""
        try:
            returned = trainable.save_checkpoint(self.scratch)
            files = _read_files(self.scratch)
        finally:  # also what a trainable wrote before it raised: the next one saves here, too
            for name in os.listdir(self.scratch):
                path = os.path.join(self.scratch, name)
                shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
        state = pickle.dumps(returned) if isinstance(returned, dict) else None
        checkpoint = MemoryCheckpoint(files, state, self.scratch)
        return _TrainingResult(checkpoint, dict(trainable._last_result or {}))

    def restore(self, trainable: Any, saved: _TrainingResult) -> None:
        """Loads what `save` saved."""
        checkpoint, metrics = saved.checkpoint, saved.metrics
        _set_progress(
            trainable,
            Progress(
                metrics.get(TRAINING_ITERATION, 0),
                metrics.get(TIME_TOTAL_S, 0),
                metrics.get(TIMESTEPS_TOTAL),
                metrics.get(EPISODES_TOTAL),
            ),
        )
        if checkpoint.state is not None:
            trainable.load_checkpoint(pickle.loads(checkpoint.state))
            return
        with checkpoint.as_directory() as folder:
            trainable.load_checkpoint(folder)


def _sync(folder: Path) -> None:
    """Sees to it that a folder is on the disk, with all that is in it."""
    for place, _, names in os.walk(folder):
        for name in names:
            sync_to_disk(os.path.join(place, name))
        sync_to_disk(place)


def _read_files(folder: str) -> dict[str, bytes]:
    files = {}
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            with open(path, "rb") as file:
                files[os.path.relpath(path, folder)] = file.read()
    return files


class _ActorManager(RayActorManager):  # type: ignore[misc]  # ray ships no types
    """Ray's own, in which a worker that Ray itself kills costs its trial, and not the study.

    Ray kills workers when memory runs short, before the kernel does. The error that it then has for their calls is
    neither of the two kinds that it knows here, and is raised.
    """

    def _actor_task_failed(self, tracked_actor_task: Any, exception: Exception) -> None:
        if not isinstance(exception, RayActorError | RayTaskError):
            exception = RayActorError(error_msg=f"the worker died: {type(exception).__name__}: {exception}")
        super()._actor_task_failed(tracked_actor_task, exception)

    def has_news_of(self, actor: TrackedActor) -> bool:
        """Whether an answer of this actor is there that was not read yet."""
        # Of an actor's calls those that were read are listed, too.
        asked = (
            (self._tracked_actors_to_task_futures, self._actor_task_events),
            (self._tracked_actors_to_state_futures, self._actor_state_events),
        )
        unread = [future for known, events in asked for future in events.get_futures() & set(known.get(actor, ()))]
        return bool(unread and ray.wait(unread, timeout=0)[0])


class Controller(TuneController):  # type: ignore[misc]  # ray ships no types
    """Ray Tune's controller without what a study does itself: snapshots, checks of metrics, printing of errors.

    Args:
        search_alg: the source of trials.
        scheduler: the scheduler.
        callbacks: Ray Tune callbacks.
        storage: where the study lies.
        max_pending: how many trials may wait for resources.
        actor_manager: what runs the trainables in place of Ray's actors.
        trial_timeout_s: seconds after which a trial has failed whose actor doesn't answer; None for no limit. Whoever
            else runs the trainables sees to that itself.
        report_every_s: steps about which nothing has to be decided are reported together, after so many seconds. The
            scheduler is then a `Recorder`, which knows how far a trial may go. 0: each step is reported at once.
    """

    _wrapper: Any = None
    _leaving: dict[Trial, bool] | None = None
    """In a study that is interrupted, the trials that are still to be saved; and whether they have been asked to."""
    _worth_saving: Callable[[Trial], bool] = staticmethod(lambda trial: False)
    """In such a study: whether a trial has something to save."""
    checkpoint_is_due: Callable[[Trial], bool] = staticmethod(lambda trial: False)
    """Whether a trial that goes on is to be saved after its last report."""
    study_error: StudyError | None = None
    """What a trainable has raised that ends the study, and not only its trial."""
    max_lost_nodes = 0
    """How often a trial goes on whose node has gone, beside the failures that are its own."""
    resources: Any = None
    """What every trial asks for; None if they ask for different things."""
    _kept = 0

    def __init__(
        self,
        *,
        search_alg: Any,
        scheduler: Any,
        callbacks: list[Any],
        storage: StudyStorage,
        max_pending: int,
        actor_manager: Any = None,
        trial_timeout_s: float | None = None,
        report_every_s: float = 0.0,
    ) -> None:
        super().__init__(
            search_alg=search_alg, scheduler=scheduler, callbacks=callbacks, storage=storage, reuse_actors=True
        )
        self._trials = _OrderedTrials()
        self._max_pending_trials = max_pending
        self._print_trial_errors = False
        self._insufficient_resources_manager = _NoWarnings()
        self._in_process = actor_manager is not None
        if actor_manager is not None:
            self._actor_manager = actor_manager
            self._class_cache = _PlainClasses()
        else:
            self._actor_manager = _ActorManager(self._actor_manager._resource_manager)
        self._trial_timeout_s = None if self._in_process else trial_timeout_s
        self._calls: dict[Trial, tuple[str, float]] = {}
        """Of trials whose actor is called: what for, and when their time begins."""
        self._hanging: set[TrackedActor] = set()
        """Actors to be killed."""
        self._look_again_s = 0.0
        self._report_every_s = report_every_s
        self._more_to_come = False
        """Whether the trial has trained on since the report that is being processed."""

    def _wrapped(self) -> Any:
        """What Ray hands to schedulers in place of the controller; Ray makes one anew for each call of a scheduler."""
        if self._wrapper is None:
            self._wrapper = super()._wrapped()
        return self._wrapper

    def is_finished(self) -> bool:
        """Whether nothing runs or waits and no trial will come. Ray walks all trials, twice for each that ends."""
        return not (self.num_active or self._paused_trials) and bool(self._search_alg.is_finished())

    @property
    def num_active(self) -> int:
        """Trials that run or wait for resources; paused ones are left out."""
        return len(self._running_trials) + len(self._pending_trials)

    @property
    def num_paused(self) -> int:
        """Trials that are paused."""
        return len(self._paused_trials)

    def checkpoint(self, force: bool = False, wait: bool = False) -> None:
        """No snapshot: the study's log is all that is needed to go on, and Ray's snapshots are not atomic."""

    def on_step_begin(self) -> None:
        """Ends trials that hang. No refresh of the cluster's resources, which only Ray's own progress table shows."""
        if self._trial_timeout_s is not None:
            self._end_those_that_hang(self._trial_timeout_s, time.monotonic())

    def stop_trial(self, trial: Trial) -> None:
        """Ends a trial, and forgets it: Ray keeps every trial of a study, so that memory and callbacks grow with it."""
        super().stop_trial(trial)
        self._forget_ended(trial)

    def _process_trial_failure(self, trial: Trial, exception: Any) -> None:
        """Retries or ends a trial that failed, and forgets one that ended."""
        super()._process_trial_failure(trial, exception)
        self._forget_ended(trial)

    def _forget_ended(self, trial: Trial) -> None:
        if not trial.is_finished():
            return
        self._calls.pop(trial, None)
        self._live_trials.discard(trial)
        self._stopped_trials.discard(trial)
        self._failed_trials.discard(trial)
        self._cached_trial_decisions.pop(trial.trial_id, None)
        if trial in self._trials:
            self._trials.remove(trial)

    def close(self) -> None:
        """Stops whatever still runs, without a word to scheduler or searcher.

        With Ray's actors, a trial in the middle of a step is not waited for: its actor goes with the cluster.
        """
        if self._in_process or self.is_finished():
            self.cleanup()
        else:
            self.end_experiment_callbacks()
            self._actor_manager.cleanup()

    def save_running(self, worth_it: Callable[[Trial], bool], until_s: float) -> None:
        """Saves what runs, as far as there is time, and lets nothing go on. For a study that is interrupted.

        With Ray's actors a trial is saved when its step has ended; one whose step takes longer goes without.

        Args:
            worth_it: whether a trial has something to save.
            until_s: when to give up, by `time.monotonic`.
        """
        self._worth_saving = worth_it
        self._leaving = {trial: False for trial in self._running_trials if trial in self._trial_to_actor}
        manager, interrupted = self._actor_manager, None
        if self._in_process:
            manager.drop_steps()
            interrupted = manager.interrupted
        for trial in list(self._leaving):
            if not worth_it(trial) or self._trial_to_actor[trial] is interrupted:
                del self._leaving[trial]
            elif self._in_process and not trial.is_saving:
                self._schedule_trial_save(trial)
        while self._leaving and time.monotonic() < until_s:
            if not manager.next(timeout=0.05) and self._in_process:
                break

    def _schedule_trial_train(self, trial: Trial) -> None:
        """The next step, or the next ones; in a study that is interrupted, the last save."""
        if self._leaving is None:
            until = self._scheduler_alg.goes_to(trial) if self._report_every_s else None
            if until is None:
                super()._schedule_trial_train(trial)
            else:
                self._schedule_trial_task(
                    trial,
                    "train_buffered",
                    (self._report_every_s, until),
                    on_result=self._on_training_result,
                    on_error=self._trial_task_failure,
                )
        elif not self._leaving.get(trial, not self._worth_saving(trial)):  # also one whose report has just come
            self._leaving[trial] = True
            self._schedule_trial_save(trial)

    def _process_trial_save(self, trial: Trial, checkpoint_value: _TrainingResult) -> None:
        super()._process_trial_save(trial, checkpoint_value)
        if self._leaving is not None:
            self._leaving.pop(trial, None)

    def _checkpoint_trial_if_needed(self, trial: Trial, force: bool = False) -> None:
        """Ray's own, and whenever the study says that it is time; it would save what the trial is at now."""
        if not self._more_to_come:
            super()._checkpoint_trial_if_needed(trial, force or self.checkpoint_is_due(trial))

    def _mark_trial_to_checkpoint(self, trial: Trial) -> None:
        """Nothing to mark: see `checkpoint`. Ray would keep every trial's state twice."""

    def _validate_result_metrics(self, result: dict[str, Any]) -> None:
        """Done where the study's events are recorded, with a message that names the metrics seen."""

    def _update_trial_queue(self, blocking: bool = False, timeout: int = 600) -> bool:
        """Never blocks: Ray would sleep for seconds at a time, up to ten minutes, until there is a trial."""
        return bool(super()._update_trial_queue(blocking=False))

    def keep_actors(self, number: int, paused: int | None) -> None:
        """Keeps as many idle actors as trials run at a time, where all trials ask for the same resources.

        Ray keeps those that a waiting trial has asked for already. A rung asks when it has closed, by which time the
        actors of its trials would be gone, and each new process costs more than many epochs. When no further trial
        will come, no more are kept than there are trials which may want one: the others would hold on to nodes.

        Args:
            number: trials at a time.
            paused: when no further trial will come, how many paused ones may go on; None while new ones come.
        """
        if self.resources is None:
            return
        self._max_pending_trials = max(1, number)
        number = number if paused is None else min(number, paused + len(self._pending_trials))
        self._actor_cache.increase_max(self.resources, number - self._kept)
        self._kept = number

    def _maybe_cache_trial_actor(self, trial: Trial) -> bool:
        """Ray's own, but for one thing: also when no new trials will come, paused ones will want actors."""
        actor = self._trial_to_actor[trial]
        manager = self._actor_manager
        started = manager.is_actor_started(actor) and not manager.is_actor_failed(actor)
        if not started or actor not in self._started_actors:
            return False
        if not self._actor_cache.cache_object(trial.placement_group_factory, actor):
            return False
        del self._trial_to_actor[trial], self._actor_to_trial[actor]
        trial.set_ray_actor(None)
        return True

    def _schedule_trial_task(
        self,
        trial: Trial,
        method_name: str,
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
        on_result: Any = None,
        on_error: Any = None,
        _return_future: bool = False,
    ) -> Any:
        """Ray's own, but for the text of each call and its result, which it makes for a message that nobody reads."""
        if not self._in_process:
            if self._trial_timeout_s is not None:
                # A reset first ends the trial before, and then may build the trainable anew.
                more_s = {"reset": _START_S, "train_buffered": self._report_every_s}.get(method_name, 0.0)
                self._calls[trial] = method_name, time.monotonic() + more_s
                on_result = on_result and partial(self._answered, on_result)
            return super()._schedule_trial_task(
                trial, method_name, args, kwargs, on_result, on_error, _return_future=_return_future
            )

        return self._actor_manager.schedule_actor_task(
            self._trial_to_actor[trial],
            method_name,
            args,
            kwargs,
            on_result and (lambda actor, value=None: on_result(trial, value)),
            on_error and (lambda actor, error: on_error(trial, error)),
            _return_future=_return_future,
        )

    def _answered(self, on_result: Callable[..., None], trial: Trial, *values: Any) -> None:
        self._calls.pop(trial, None)
        on_result(trial, *values)

    def _schedule_trial_stop(self, trial: Trial, exception: Exception | None = None) -> None:
        self._calls.pop(trial, None)
        super()._schedule_trial_stop(trial, exception)

    def _end_those_that_hang(self, timeout_s: float, now: float) -> None:
        """Fails the trials whose actor has not answered for too long.

        An answer that is there and was not read yet counts: a searcher may keep this process busy for long.
        """
        if now < self._look_again_s:
            return
        self._look_again_s = now + min(1.0, timeout_s / 10)
        manager = self._actor_manager
        for actor, trial in list(self._actor_to_trial.items()):
            if trial not in self._calls and actor not in self._started_actors and manager.is_actor_started(actor):
                self._calls[trial] = "setup", now + _START_S
            what, since = self._calls.get(trial, ("", now))
            if now - since <= timeout_s:
                continue
            if manager.has_news_of(actor):
                continue
            if trial in self._pending_trials and trial not in self._resetting_trials:  # its process is being started
                self._set_trial_status(trial, Trial.RUNNING)
                self._unstage_trial_with_resources(trial)
            self._hanging.add(actor)
            actor.set_on_start(None)
            actor.set_on_error(None)
            said = "no report for" if what.startswith("train") else f"{_SAID_OF.get(what, what)} took more than"
            self._trial_task_failure(trial, TuneError(f"{said} {timeout_s:g} s (budget.trial_timeout_s)"))

    def _remove_actor(self, tracked_actor: TrackedActor) -> None:
        """Ray asks an actor to stop, and waits ten minutes for it: one that hangs is killed."""
        if tracked_actor in self._hanging:
            self._hanging.discard(tracked_actor)
            self._actor_manager.remove_actor(tracked_actor, kill=True)
        else:
            super()._remove_actor(tracked_actor)

    def _on_training_result(self, trial: Trial, result: Any) -> None:
        """Ray's own without its text, for one report and for those of several steps.

        Nothing that needs the trial as it was is decided about a report but the last: see `Recorder.goes_to`. If it is
        all the same, what comes after is dropped, as if it had not been trained.
        """
        if not isinstance(result, list):
            self._process_trial_result(trial, result)
        else:
            recorder = self._scheduler_alg
            arrived = recorder.clock()
            try:
                for number, (report, seconds_ago) in enumerate(result, 1):
                    self._more_to_come = number < len(result)
                    recorder.stepped_at = round(arrived - seconds_ago, 6)
                    # Of one that was queued before, Ray would let a trial go on that is being saved now.
                    self._queued_trial_decisions.pop(trial.trial_id, None)
                    decision = self._process_trial_result(trial, report)
                    if decision != TrialScheduler.CONTINUE or recorder.error is not None:
                        break
            finally:
                self._more_to_come, recorder.stepped_at = False, None
        self._maybe_execute_queued_decision(trial, after_save=False)

    def _trial_task_failure(self, trial: Trial, exception: Exception) -> None:
        """A failure while an actor was reset for the trial leaves the trial as one that was started."""
        if trial in self._resetting_trials:
            self._leave_reset(trial)
        cause = getattr(exception, "cause", None) or exception.__cause__  # Ray's, or ours
        if outage := find_outage(exception):  # as for want of room below
            self.study_error = outage
            return
        if isinstance(cause, StudyError):
            self.study_error = cause
        elif is_full(exception):  # no fault of the trial's: it stays as it is, to go on from there
            self.study_error = DiskFull(trial.storage.experiment_driver_staging_path)
            return
        if isinstance(cause, UnreadableCheckpoint) and isinstance(trial, StudyTrial):
            dropped, taken = trial.drop_checkpoint()
            if dropped is not None and taken is not None:
                trial.fallback = Fallback(dropped.checkpoint, taken.checkpoint, dict(taken.metrics), str(cause))
                self._go_on(trial, exception)
            else:
                super()._trial_task_failure(trial, exception)
            if dropped is not None:
                trial.storage.discard(dropped.checkpoint)
            return
        if isinstance(trial, StudyTrial) and not self._in_process and trial.lost_nodes < self.max_lost_nodes:
            if lost := lost_node(exception, trial.node_ip):
                trial.lost_nodes, trial.lost = trial.lost_nodes + 1, lost
                self._go_on(trial, exception)
                return
        super()._trial_task_failure(trial, exception)

    def _go_on(self, trial: Trial, exception: Exception) -> None:
        """Lets a trial go on from its last checkpoint, without counting that as a failure of its own."""
        self._try_recover(trial, exc=exception)
        self._callbacks.on_trial_recover(iteration=self._iteration, trials=self._trials, trial=trial)

    def _on_trial_reset(self, trial: Trial, success: bool) -> None:
        """Ray tells neither scheduler nor searcher when a reset fails, and a rung would wait for the trial for ever."""
        if not success:
            self._trial_task_failure(trial, TuneError("reset_config returned False"))
        else:
            super()._on_trial_reset(trial, success)

    def _actor_failed(self, tracked_actor: TrackedActor, exception: Exception) -> None:
        """An actor that dies while it is reset fails its trial once; Ray counts it twice, so no retry is left."""
        trial = self._actor_to_trial[tracked_actor]
        if trial in self._resetting_trials:
            self._leave_reset(trial)
        super()._actor_failed(tracked_actor, exception)

    def _leave_reset(self, trial: Trial) -> None:
        self._resetting_trials.discard(trial)
        if trial in self._staged_trials:
            self._unstage_trial_with_resources(trial)
        self._set_trial_status(trial, Trial.RUNNING)

    def _schedule_trial_save(self, trial: Trial, result: dict[str, Any] | None = None) -> Any:
        future = super()._schedule_trial_save(trial, result)
        if self._in_process and future is not None:
            future = trial.temporary_state.saving_to = _Saved(future.future)
        return future


class _Saved(_FutureTrainingResult):  # type: ignore[misc]  # ray ships no types
    """A save that is done already: Ray's PBT tests the type and calls `resolve`, which would ask a cluster."""

    def resolve(self, block: bool = True) -> _TrainingResult | None:
        return self.future.value


class _OrderedTrials(dict):  # type: ignore[type-arg]
    """The live trials in the order in which they were added, in place of the controller's list of all trials.

    A list takes as long to remove a trial as there are trials.
    """

    def append(self, trial: Trial) -> None:
        self[trial] = None

    def remove(self, trial: Trial) -> None:
        del self[trial]

    def index(self, trial: Trial) -> Trial:
        """What `pop` takes: Ray moves a trial that it retries to the end."""
        return trial


class _NoWarnings:
    """Stands in for what warns after a minute without room for a trial: the executor knows better what there is."""

    def on_no_available_trials(self, all_trials: Any) -> None:
        """Nothing: Ray's would look at the first of a list of all trials, which is not kept."""


class _PlainClasses:
    """Stands in for the controller's cache of remote classes: in-process, a class is its own actor class."""

    def get(self, trainable: type) -> type:
        return trainable


class ActorHandle:
    """Stands in for Ray's handle of an actor; the controller asks it for one thing only."""

    class get_auto_filled_metrics:
        """Host and process of the actor, which only Ray's tables show."""

        @staticmethod
        def remote(**_: Any) -> None:
            """Nothing."""


@dataclass(frozen=True)
class Fallback:
    """A trial goes on from the checkpoint before its last.

    Attributes:
        dropped: the last one, which can't be read.
        taken: the one before.
        metrics: what had been reported when that was made.
        why: what the last one was refused with.
    """

    dropped: Checkpoint
    taken: Checkpoint
    metrics: dict[str, Any]
    why: str


class StudyTrial(Trial):  # type: ignore[misc]  # ray ships no types
    """A trial that costs less: Ray's does for each trial and report what only its own tables and `ResultGrid` need."""

    trainable: type
    fallback: Fallback | None = None
    """What is to be recorded of a checkpoint that could not be read, and of the one that takes its place."""
    oldest: _TrainingResult | None = None
    """The first checkpoint that may take the place of a later one: of those before it, weights or configuration are
    others."""

    lost_nodes = 0
    """How many nodes have gone while it ran on them."""
    lost: str | None = None
    """What is to be recorded of the last of them."""

    @property
    def node_ip(self) -> str | None:
        """The node that it last reported from."""
        location = self.temporary_state.location
        return str(location.hostname) if location is not None and location.hostname else None

    def take_lost(self) -> str | None:
        """`lost`, once."""
        lost, self.lost = self.lost, None
        return lost

    def take_fallback(self) -> Fallback | None:
        """`fallback`, once."""
        fallback, self.fallback = self.fallback, None
        return fallback

    def drop_checkpoint(self) -> tuple[_TrainingResult | None, _TrainingResult | None]:
        """Forgets the last checkpoint; it, and the one before, which is the last from now on, if there is one."""
        manager = self.run_metadata.checkpoint_manager
        known, dropped = manager._checkpoint_results, manager.latest_checkpoint_result
        first = known.index(self.oldest) if self.oldest in known else 0
        before = [] if dropped is self.oldest else [result for result in known[first:] if result is not dropped]
        taken = before[-1] if before else None
        manager._checkpoint_results, manager._latest_checkpoint_result = before, taken
        self.invalidate_json_state()
        return dropped, taken

    def init_local_path(self) -> None:
        """Makes the trial's folder, where it will hold something."""
        if not isinstance(self.storage, MemoryStorage) or self.storage.folders:
            super().init_local_path()

    def handle_error(self, exc: Any = None) -> None:
        """Notes a failure, in a text file in the trial's folder; Ray pickles it as well, for its own restore."""
        os.makedirs(self.local_path, exist_ok=True)
        super().handle_error(exc)
        if self.pickled_error_file is not None:
            Path(self.pickled_error_file).unlink(missing_ok=True)
            self.run_metadata.pickled_error_filename = None

    def on_checkpoint(self, checkpoint_result: _TrainingResult) -> None:
        """Notes a checkpoint; of those in memory the last one only, since none of them can be damaged."""
        manager = self.run_metadata.checkpoint_manager
        if isinstance(checkpoint_result.checkpoint, MemoryCheckpoint):
            manager._latest_checkpoint_result = checkpoint_result
            return
        super().on_checkpoint(checkpoint_result)
        if self.storage.kept is None:
            manager._checkpoint_results = manager._checkpoint_results[-2:]

    def __str__(self) -> str:
        """The id: Ray puts trials into messages that nobody reads, several times a step."""
        return str(self.trial_id)

    __repr__ = __str__

    def get_trainable_cls(self) -> type:
        """The class itself. Ray unpickles it from its registry for each trial, with all the data it holds."""
        return self.trainable

    def update_last_result(self, result: dict[str, Any]) -> None:
        """Notes a report, without running averages of each number in it."""
        result["experiment_tag"] = self.experiment_tag
        self.set_location(_Location(result.get(NODE_IP), result.get(PID)))
        self.run_metadata.last_result = result
        self.run_metadata.last_result_time = time.time()


def lost_node(exception: Exception, address: str | None) -> str | None:
    """What to say of a failure that is the node's and not the trial's; None of any other.

    When a node is shut down in order, Ray says so. When it goes at once, Ray only finds the worker unreachable, and
    takes half a minute to find out why: then its node is asked. A worker that dies by itself leaves one that answers.

    Args:
        exception: what Ray has for the trial's call.
        address: the node that the trial last reported from; None if it has not reported.
    """
    text = str(exception)
    if "its node has died" in text or "node was terminated" in text or type(exception).__name__ == "NodeDiedError":
        why = text.strip().splitlines()[-1].strip().removeprefix("the actor's node was ")
        return f"its node{f' {address}' if address else ''} has gone: {why}"
    cause = getattr(exception, "cause", None)
    if type(cause).__name__ == "ProcessFailed" and gone(None, ray.nodes()):  # of another of the trial's processes
        return f"a node of its processes has gone: {cause}".splitlines()[0]
    if isinstance(exception, ActorUnavailableError) and gone(address, ray.nodes()):
        return f"its node{f' {address}' if address else ''} has gone: it no longer answers"
    return None


def new_trial(
    trainable: type,
    *,
    trainable_name: str,
    trial_id: str,
    number: int,
    config: dict[str, Any],
    storage: StudyStorage,
    resources: Any,
    max_failures: int,
    checkpoint_at_end: bool,
) -> Trial:
    """A Ray Tune trial that lies in `trials/<number>` of the study's folder.

    Two checkpoints are kept: the one before is there when the last can't be read.
    """
    trial = StudyTrial(
        trainable_name,
        config=config,
        trial_id=trial_id,
        storage=storage,
        evaluated_params=config,
        experiment_tag=trial_id,
        placement_group_factory=resources,
        checkpoint_config=CheckpointConfig(num_to_keep=storage.kept, checkpoint_at_end=checkpoint_at_end),
        max_failures=max_failures,
    )
    trial.trainable = trainable
    trial.relative_logdir = trial.storage.trial_dir_name = f"trials/{number}"
    return trial


def restore_trial(trial: Trial, checkpoints: Sequence[tuple[str, dict[str, Any]]], paused: bool, failures: int) -> None:
    """Brings a trial of a study that is taken up to where it was.

    Args:
        trial: a new one.
        checkpoints: (path as in the log, what was reported there) of those that it has, the last one last.
        paused: whether it waits for its scheduler.
        failures: how often it has been tried again.
    """
    manager = trial.run_metadata.checkpoint_manager
    for path, metrics in checkpoints:
        saved = _TrainingResult(trial.storage.checkpoint(path), {**metrics, TRIAL_ID: trial.trial_id})
        manager.register_checkpoint(saved)
        trial.run_metadata.last_result = dict(manager.latest_checkpoint_result.metrics)
        # The names of checkpoints count on from here: one that is on record is never written over.
        trial.storage.current_checkpoint_index = int(Path(path).name.rpartition("_")[2])
    trial.run_metadata.num_failures = failures
    if paused:
        trial.set_status(Trial.PAUSED)


def last_metrics(trial: Trial) -> dict[str, Any] | None:
    """What a trial had reported when its last checkpoint was made; None if it has none."""
    saved = trial.latest_checkpoint_result
    return None if saved is None or saved.checkpoint is None else dict(saved.metrics)


def copy_checkpoint(source: Trial, trial: Trial) -> Checkpoint | None:
    """Makes a copy of one trial's last checkpoint the last one of another trial, which Ray then restores it from.

    It is a copy in the trial's own folder: Ray deletes old checkpoints of the source. One in memory is shared, since
    nothing changes it.

    Args:
        source: whose checkpoint it is.
        trial: who gets it; it must be paused.

    Returns:
        The copy; None if there is nothing to copy, or it is gone.
    """
    saved = source.latest_checkpoint_result
    if saved is None or saved.checkpoint is None:
        return None
    checkpoint = saved.checkpoint
    if not isinstance(checkpoint, MemoryCheckpoint):
        storage = copy.copy(trial.storage)
        storage._update_checkpoint_index(saved.metrics)  # as the trial itself counts its next one
        try:
            checkpoint = storage.persist_current_checkpoint(checkpoint)
        except FileNotFoundError:
            return None
    metrics = {key: value for key, value in saved.metrics.items() if key != "config"}
    trial.on_checkpoint(_TrainingResult(checkpoint, {**metrics, TRIAL_ID: trial.trial_id}))
    begin_anew(trial)
    return checkpoint


def begin_anew(trial: Trial) -> None:
    """From its last checkpoint on, a trial has other weights or another configuration: no earlier one will do."""
    if isinstance(trial, StudyTrial):
        trial.oldest = trial.latest_checkpoint_result


@contextmanager
def own_session(trainable: Any) -> Iterator[None]:
    """Puts a function trainable's session into Ray's one global place for the length of a call.

    Ray has one trial a process; in-process there are several, each of whose functions waits in its own thread.
    """
    if not isinstance(trainable, FunctionTrainable):
        yield
        return
    before, _session._session = _session._session, trainable.__dict__.get("_own_session")
    try:
        yield
    finally:
        trainable._own_session, _session._session = _session._session, before


def join_thread(trainable: Any, timeout_s: float = 2.0) -> Callable[[], None]:
    """A function that waits until the trainable's thread has gone; to be called after its session was finished."""
    session = trainable.__dict__.get("_own_session")
    thread = getattr(session, "training_thread", None)

    def join() -> None:
        if thread is not None and thread.is_alive():
            threading.Thread.join(thread, timeout_s)

    return join


def save_class(trainable: Any, folder: Path, name: str) -> _TrainingResult:
    """Saves a class trainable, in place of Ray's own `save`, which pickles what `save_checkpoint` returns.

    Args:
        trainable: what to save.
        folder: a new one, for its files. One that was left there by a save that failed is removed.
        name: the trainable's, for messages.
    """
    try:
        folder.mkdir()
    except FileNotFoundError:
        folder.mkdir(parents=True)
    except FileExistsError:
        shutil.rmtree(folder)
        folder.mkdir()
    returned = trainable.save_checkpoint(str(folder))
    if isinstance(returned, str) and returned != str(folder):
        raise ValueError(f"save_checkpoint returned {returned!r}; it must return a dict, None or its checkpoint_dir")
    progress = Progress(
        trainable._iteration, trainable._time_total, trainable._timesteps_total, trainable._episodes_total
    )
    write(folder, progress, returned if isinstance(returned, dict) else None, name)
    checkpoint, metrics = Checkpoint(os.path.abspath(folder)), dict(trainable._last_result or {})
    storage = trainable._storage
    if storage is not None:
        storage._update_checkpoint_index(metrics)
        checkpoint = storage.persist_current_checkpoint(checkpoint)
    return _TrainingResult(checkpoint, metrics)


def load_class(trainable: Any, saved: str | Checkpoint | _TrainingResult) -> None:
    """Loads what `save_class` saved, in place of Ray's own `restore`, which unpickles what it finds.

    Raises:
        UnreadableCheckpoint: it is gone or damaged.
    """
    checkpoint = saved.checkpoint if isinstance(saved, _TrainingResult) else saved
    if isinstance(checkpoint, str):
        checkpoint = Checkpoint(os.path.abspath(checkpoint))
    with checkpoint.as_directory() as folder:
        progress, state = read(Path(folder))
        _set_progress(trainable, progress)
        try:
            trainable.load_checkpoint(folder if state is None else state)
        except (HpoRayError, UnreadableCheckpoint):
            raise
        except Exception as error:  # of the user's code, which reads the files, if there are some
            raise UnreadableCheckpoint(f"{type(error).__name__}: {error}") from error


def _set_progress(trainable: Any, progress: Progress) -> None:
    trainable._iteration = progress.iteration
    trainable._time_total = progress.time_total
    trainable._timesteps_total = progress.timesteps_total
    trainable._episodes_total = progress.episodes_total
    trainable._time_since_restore = 0.0
    trainable._iterations_since_restore = trainable._timesteps_since_restore = 0
    trainable._restored = True


def abandon_thread(trainable: Any) -> TracebackType | None:
    """Gives up the thread of a function trainable that hangs; where it was, None if there is no such thread.

    A thread can't be ended from outside. This one ends by SystemExit as soon as it runs Python code, so that one that
    only slept doesn't report for whichever trial is then running.
    """
    thread = getattr(trainable.__dict__.get("_own_session"), "training_thread", None)
    if thread is None or not thread.is_alive():
        return None
    frame = sys._current_frames().get(thread.ident)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
    where = None
    while frame is not None and frame.f_code.co_filename != threading.__file__:
        where = TracebackType(where, frame, frame.f_lasti, frame.f_lineno)
        frame = frame.f_back
    return where


def empty_save(trainable: Any) -> _TrainingResult:
    """What `save` gives for a trainable that can't be saved."""
    return _TrainingResult(checkpoint=None, metrics=dict(trainable._last_result or {}))
