"""Makes any Ray Tune trainable a part of a study, without a change to its code or its configuration.

The class that Ray runs is made from the user's: around each call it sets the trial's context (number, seed, arguments)
and sends what the trial prints to the trial's own file.
"""

from __future__ import annotations

import copy
import errno
import math
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any, ClassVar, TextIO, cast

from ray.tune import PlacementGroupFactory
from ray.tune.result import (
    DONE,
    SHOULD_CHECKPOINT,
    TIME_THIS_ITER_S,
    TIME_TOTAL_S,
    TRAINING_ITERATION,
    TRIAL_ID,
    TRIAL_INFO,
)
from ray.tune.trainable import FunctionTrainable, Trainable, wrap_function
from ray.tune.utils import flatten_dict

from hpo_ray.executors.deadline import TrialTimeout, deadline
from hpo_ray.executors.disk import is_full
from hpo_ray.executors.internals import (
    MemoryStorage,
    StudyStorage,
    WatchedCheckpoint,
    abandon_thread,
    empty_save,
    join_thread,
    load_class,
    own_session,
    save_class,
    watch_checkpoint,
)
from hpo_ray.trainables.checkpoint import UnreadableCheckpoint
from hpo_ray.trainables.context import TrialContext, use_context
from hpo_ray.trainables.devices import wait_for_own_gpus

OUTPUT_FILE = "output.log"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_PLUMBING = re.compile(
    r"[\\/](ray[\\/](air|tune|train|util|_private)|hpo_ray[\\/]executors)[\\/]|python[\\/]ray[\\/]_raylet|[\\/]contextlib\.py"
)


class _OutputFile:
    """A text stream that appends to a file, which is made when the first text comes.

    Each line is written when it is complete, since the process may die at any moment.
    """

    encoding = "utf-8"
    errors = "replace"

    def __init__(self, path: Path, bring: Callable[[Path], None]) -> None:
        self.path = path
        self._bring = bring
        self._file: TextIO | None = None

    def write(self, text: str) -> int:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._bring(self.path)
            self._file = self.path.open("a", buffering=1, encoding=self.encoding, errors=self.errors)
        return self._file.write(text)

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True


class BoundTrainable(Trainable):  # type: ignore[misc]  # ray ships no types
    """Mixed in before a user's class by `bind`."""

    study_context: ClassVar[TrialContext]
    timeout_s: ClassVar[float | None]
    """Seconds after which a call is interrupted."""
    # Said here and not asked when needed: in its actors Ray wraps methods, and then every class seems to have them all.
    own_class: ClassVar[type]
    """The user's class, for processes in which Ray Tune doesn't run it."""
    can_save: ClassVar[bool]
    can_reset: ClassVar[bool]
    _time_attr: ClassVar[str]
    """Name of the reported value that counts resource."""

    _untold: BaseException | None = None
    """What a step has raised of which the driver doesn't know yet."""
    _unread: WatchedCheckpoint | None = None
    """The checkpoint that a function was given, until it has reported."""

    def __init__(self, config: dict[str, Any], storage: Any = None) -> None:
        # In-process, the driver's own storage would come here, and both sides count checkpoints.
        storage = copy.copy(storage)
        self._enter_trial(config, storage)
        try:
            with self._scope("setup took more than"):
                self._wait_for_gpus(config)
                super().__init__(config, storage)
        except BaseException:
            self._leave_trial()  # nobody stops an object that was never built
            raise

    def train(self) -> dict[str, Any]:
        """One step, in the trial's scope."""
        self._raise_untold()
        with self._scope("no report for"):
            try:
                return cast("dict[str, Any]", super().train())
            except Exception as error:
                unread, self._unread = self._unread, None
                # What a function raises while it reads its checkpoint comes in its first step.
                if unread is not None and unread.raised is not None:
                    raise UnreadableCheckpoint(f"{type(unread.raised).__name__}: {unread.raised}") from error
                raise
            finally:
                self._unread = None

    def train_buffered(self, seconds: float, resource: int) -> list[tuple[dict[str, Any], float]]:
        """Steps up to a resource, or until a step ends after so many seconds; at least one.

        In place of Ray's own, which counts reports, and loses them when a later step raises: here the next call raises.
        A report after which the driver may have to do something is the last one, before a step too many: one that ends
        the trial, comes with a checkpoint, or holds a number that is not finite.

        Returns:
            (report, seconds since the step ended) of each step, the last one last.
        """
        started = monotonic()
        reports: list[tuple[dict[str, Any], float]] = []
        goes_on = True
        while goes_on:
            try:
                report = self.train()
            except BaseException as error:  # SystemExit, too: Ray ends the process then, and with it what is here
                if not reports:
                    raise
                self._untold = error
                break
            now = monotonic()
            reports.append((report, now))
            goes_on = now - started < seconds and _leads_nowhere(report, self._time_attr, resource)
        ended = monotonic()
        return [(report, ended - at) for report, at in reports]

    def _raise_untold(self) -> None:
        error, self._untold = self._untold, None
        if error is not None:
            raise error

    def save(self, checkpoint_dir: str | None = None) -> Any:
        """A checkpoint, written beside its final place; an empty one if the user's class has no `save_checkpoint`."""
        self._raise_untold()  # its state is that in the middle of a step
        with self._scope("saving took more than"):
            try:
                return self._save(checkpoint_dir)
            finally:
                self._share_output()

    def _save(self, checkpoint_dir: str | None) -> Any:
        if not self.can_save:
            return empty_save(self)
        if isinstance(self, FunctionTrainable):
            return super().save(checkpoint_dir)
        if isinstance(self._storage, MemoryStorage):
            return self._storage.save(self)
        aside = self._storage.aside() if checkpoint_dir is None else Path(checkpoint_dir)
        try:
            return save_class(self, aside, type(self).__name__)
        except BaseException as error:
            full = is_full(error, aside)  # before what was written is removed
            shutil.rmtree(aside, ignore_errors=True)
            if full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(aside)) from error
            raise

    def restore(self, checkpoint_path: Any) -> Any:
        """Loads a checkpoint, in the trial's scope."""
        with self._scope("loading a checkpoint took more than"):
            if isinstance(self, FunctionTrainable):
                return self._restore_function(checkpoint_path)
            if isinstance(self._storage, MemoryStorage):
                return self._storage.restore(self, checkpoint_path)
            return load_class(self, self._brought(checkpoint_path))

    def _restore_function(self, saved: Any) -> Any:
        """Hands a function its checkpoint, and looks at what becomes of it."""
        try:
            restored = super().restore(self._brought(saved))
        except ValueError as error:  # Ray's, of a folder that is gone
            raise UnreadableCheckpoint(str(error)) from error
        self._unread = watch_checkpoint()
        return restored

    def reset(self, new_config: dict[str, Any], storage: Any = None) -> bool:
        """Makes room for another trial, which a trainable that can't be used again must not cost.

        Without `reset_config`, or if that gives False, the trainable is built anew in the same process.
        """
        if self.can_reset:
            self._leave_trial()
            self._enter_trial(new_config, copy.copy(storage))
            with self._scope("reset_config took more than"):  # a copy, since Ray takes the trial's info out of it
                self._wait_for_gpus(new_config)
                if super().reset(dict(new_config), storage=copy.copy(storage)):
                    return True
        with suppress(Exception):  # what the trial before raises at its end is in that trial's output
            self.stop()
        self.__dict__.clear()
        self.__init__(new_config, storage)  # type: ignore[misc]
        return True

    @property
    def logdir(self) -> str:
        """The trial's folder, which a study in memory makes only for a trainable that asks for it."""
        os.makedirs(self._logdir, exist_ok=True)
        return str(self._logdir)

    def get_auto_filled_metrics(
        self, now: Any = None, time_this_iter: float | None = None, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """What Ray adds to each report; of host, date and process nothing where they mean nothing."""
        if isinstance(self._storage, MemoryStorage) and not isinstance(self, FunctionTrainable):
            return {TRIAL_ID: self.trial_id, TIME_THIS_ITER_S: time_this_iter, TIME_TOTAL_S: self._time_total}
        return cast("dict[str, Any]", super().get_auto_filled_metrics(now, time_this_iter, *args, **kwargs))

    def _setup_logdir(self) -> None:
        if isinstance(self._storage, MemoryStorage):
            self._logdir = self._storage.trial_working_directory
        else:
            super()._setup_logdir()

    def stop(self) -> None:
        """Ends the trial, and its thread if it has one."""
        join: Callable[[], None] = join_thread(self, 0.0 if self._hung else 2.0)
        try:
            with self._scope("cleanup took more than"):
                super().stop()
                join()
        finally:
            self._leave_trial()

    def _enter_trial(self, config: dict[str, Any], storage: Any) -> None:
        self._context = replace(type(self).study_context, number=int(config[TRIAL_INFO].trial_id))
        self._place: StudyStorage | None = storage
        self._output: _OutputFile | None = None
        if storage is not None:
            storage.enter()
            self._output = _OutputFile(Path(storage.trial_working_directory, OUTPUT_FILE), storage.bring_output)
        self._folder: str | None = None
        self._unread = None
        self._untold = None
        self._hung = False

    def _wait_for_gpus(self, config: dict[str, Any]) -> None:
        """Waits for the memory of the trial's GPUs, which a process that was killed may hold a while longer."""
        asked = config[TRIAL_INFO].trial_resources
        gpus = self._context.gpus if asked is None else asked.bundles[0].get("GPU", 0.0)
        wait_for_own_gpus(gpus, self._context.free_gpu_memory)

    def _leave_trial(self) -> None:
        if self._output is not None and self._place is not None:
            self._output.close()
            self._share_output()
            self._place.leave()

    def _share_output(self) -> None:
        if self._output is not None and self._place is not None:
            self._place.share_output(self._output.path)

    def _brought(self, saved: Any) -> Any:
        """What was saved, on this machine's disk."""
        return saved if self._place is None else self._place.bring(saved)

    @contextmanager
    def _scope(self, what: str) -> Iterator[None]:
        """Around a call of the user's code; `what` says which, in the message of one that is interrupted."""
        with use_context(self._context), own_session(self), self._own_folder(), _captured(self._output):
            try:
                with deadline(self.timeout_s, what):  # within all else, so that it interrupts nothing but the call
                    yield
            except TrialTimeout as error:
                self._hung = True
                where = abandon_thread(self)
                timeout = error if where is None else error.with_traceback(where)
                self._note(timeout)
                raise timeout from None
            except Exception as error:
                self._note(error)
                raise
            except BaseException:  # a signal ends the study, and nobody waits for a function's thread
                self._hung = True
                abandon_thread(self)
                raise

    def _note(self, error: Exception) -> None:
        """Writes an error into the trial's output."""
        if self._output is not None:
            self._output.write(readable("".join(traceback.format_exception(error))) + "\n")
            self._share_output()

    @contextmanager
    def _own_folder(self) -> Iterator[None]:
        """A trial that changes the working folder changes its own, not that of its study or of the next trial."""
        before = os.getcwd()
        if self._folder is not None:
            os.chdir(self._folder)
        try:
            yield
        finally:
            now = os.getcwd()
            self._folder = None if now == before else now
            if now != before:
                os.chdir(before)


@contextmanager
def _captured(output: _OutputFile | None) -> Iterator[None]:
    """Sends what is printed to the file, except in a debugger: `breakpoint()` gets the terminal back."""
    if output is None:
        yield
        return
    stdout, stderr, hook = sys.stdout, sys.stderr, sys.breakpointhook

    def with_terminal(*args: Any, **kwargs: Any) -> Any:
        sys.stdout, sys.stderr, sys.breakpointhook = stdout, stderr, hook
        return hook(*args, **kwargs)

    sys.stdout = sys.stderr = cast(TextIO, output)
    sys.breakpointhook = with_terminal
    try:
        yield
    finally:
        sys.stdout, sys.stderr, sys.breakpointhook = stdout, stderr, hook


def readable(text: str) -> str:
    """The text of an error without colours, carets, and the frames of Ray and of the executors."""
    kept: list[str] = []
    dropping = False
    for line in _COLOUR.sub("", text).strip().splitlines():
        if line.startswith("  File "):
            dropping = _PLUMBING.search(line) is not None
        elif not line.startswith("    "):
            dropping = False
        if not dropping and line.strip(" ^~") and not line.startswith(("Failure # ", "ray::")):
            kept.append(line)
    return "\n".join(kept)


def _leads_nowhere(report: dict[str, Any], time_attr: str, resource: int) -> bool:
    """Whether nothing can come of a report but that its trial goes on."""
    flat = flatten_dict({name: value for name, value in report.items() if name != "config"})
    # Without a resource it is no report: a function has returned, or the driver has something to say about it.
    if time_attr not in flat or flat[time_attr] >= resource or flat.get(DONE) or flat.get(SHOULD_CHECKPOINT):
        return False
    return all(_is_finite(value) for value in flat.values())


def _is_finite(value: Any) -> bool:
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # a scalar of numpy's or torch's
        value = value.item()
    return not isinstance(value, float) or math.isfinite(value)


def bind(
    trainable: Callable[..., Any] | type,
    context: TrialContext,
    timeout_s: float | None = None,
    time_attr: str = TRAINING_ITERATION,
) -> type:
    """The class that Ray runs for a user's trainable.

    Args:
        trainable: a function `train(config)` or a subclass of `ray.tune.Trainable`.
        context: what all trials of the study share; each gets it with its own number.
        timeout_s: seconds after which each call of it is interrupted; None where something else sees to that.
        time_attr: name of the reported value that counts resource.
    """
    base = trainable if isinstance(trainable, type) else wrap_function(trainable)
    can_reset = _has(base, "reset_config")
    known = {
        "study_context": context,
        "timeout_s": timeout_s,
        "own_class": base,
        "_time_attr": time_attr,
        "can_save": can_save(base),
        "can_reset": can_reset,
    }
    name = getattr(trainable, "__name__", type(trainable).__name__)  # an object that can be called has none
    return type(name, (BoundTrainable, base), known)


def can_save(cls: type) -> bool:
    """Whether a trainable class has checkpoints: a function may report some, a class has to say how."""
    return issubclass(cls, FunctionTrainable) or _has(cls, "save_checkpoint")


def own_request(cls: Any, config: Mapping[str, Any]) -> PlacementGroupFactory | None:
    """What a trainable asks for itself, by `default_resource_request` or `tune.with_resources`; None if it doesn't.

    Args:
        cls: the trainable's class.
        config: a configuration of the space, on which it may depend.
    """
    return cls.default_resource_request(dict(config))


def _has(cls: type, method: str) -> bool:
    return getattr(cls, method) is not getattr(Trainable, method)
