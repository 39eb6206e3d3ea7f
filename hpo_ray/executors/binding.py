"""Makes any Ray Tune trainable a part of a study, without a change to its code or its configuration.

The class that Ray runs is made from the user's: around each call it sets the trial's context (number, seed, arguments)
and sends what the trial prints to the trial's own file.
"""

from __future__ import annotations

import copy
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TextIO, cast

from ray.tune.result import TRIAL_INFO
from ray.tune.trainable import FunctionTrainable, Trainable, wrap_function

from hpo_ray.executors.internals import empty_save, join_thread, own_session
from hpo_ray.trainables.context import TrialContext, use_context

OUTPUT_FILE = "output.log"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_PLUMBING = re.compile(
    r"[\\/](ray[\\/](air|tune|train|_private)|hpo_ray[\\/]executors)[\\/]|python[\\/]ray[\\/]_raylet"
)


class _OutputFile:
    """A text stream that appends to a file, which is made when the first text comes.

    It is opened for each text, so that a trial that sits in a Ray actor for long leaves nothing unwritten.
    """

    encoding = "utf-8"
    errors = "replace"

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, text: str) -> int:
        if text:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding=self.encoding, errors=self.errors) as file:
                file.write(text)
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True


class BoundTrainable(Trainable):  # type: ignore[misc]  # ray ships no types
    """Mixed in before a user's class by `bind`."""

    study_context: ClassVar[TrialContext]
    # Said here and not asked when needed: in its actors Ray wraps methods, and then every class seems to have them all.
    can_save: ClassVar[bool]
    can_reset: ClassVar[bool]

    def __init__(self, config: dict[str, Any], storage: Any = None) -> None:
        # In-process, the driver's own storage would come here, and both sides count checkpoints.
        storage = copy.copy(storage)
        self._enter_trial(config, storage)
        with self._scope():
            super().__init__(config, storage)

    def train(self) -> dict[str, Any]:
        """One step, in the trial's scope."""
        with self._scope():
            return cast("dict[str, Any]", super().train())

    def save(self, checkpoint_dir: str | None = None) -> Any:
        """A checkpoint, written beside its final place; an empty one if the user's class has no `save_checkpoint`."""
        with self._scope():
            if not self.can_save:
                return empty_save(self)
            aside = not isinstance(self, FunctionTrainable) and checkpoint_dir is None and self._storage is not None
            return super().save(str(self._storage.aside()) if aside else checkpoint_dir)

    def restore(self, checkpoint_path: Any) -> Any:
        """Loads a checkpoint, in the trial's scope."""
        with self._scope():
            return super().restore(checkpoint_path)

    def reset(self, new_config: dict[str, Any], storage: Any = None) -> bool:
        """Makes room for another trial; a class without `reset_config` is built anew in the same process."""
        if not self.can_reset:
            self.stop()
            self.__dict__.clear()
            self.__init__(new_config, storage)  # type: ignore[misc]
            return True
        storage = copy.copy(storage)
        self._enter_trial(new_config, storage)
        with self._scope():
            return bool(super().reset(new_config, storage=storage))

    def stop(self) -> None:
        """Ends the trial, and its thread if it has one."""
        join: Callable[[], None] = join_thread(self)
        with self._scope():
            super().stop()
            join()

    def _enter_trial(self, config: dict[str, Any], storage: Any) -> None:
        self._context = replace(type(self).study_context, number=int(config[TRIAL_INFO].trial_id))
        self._output = _OutputFile(Path(storage.trial_fs_path, OUTPUT_FILE)) if storage is not None else None

    @contextmanager
    def _scope(self) -> Iterator[None]:
        with use_context(self._context), own_session(self), _captured(self._output):
            try:
                yield
            except Exception:
                if self._output is not None:
                    self._output.write(readable(traceback.format_exc()) + "\n")
                raise


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


def bind(trainable: Callable[..., Any] | type, context: TrialContext) -> type:
    """The class that Ray runs for a user's trainable.

    Args:
        trainable: a function `train(config)` or a subclass of `ray.tune.Trainable`.
        context: what all trials of the study share; each gets it with its own number.
    """
    base = trainable if isinstance(trainable, type) else wrap_function(trainable)
    known = {"study_context": context, "can_save": can_save(base), "can_reset": _has(base, "reset_config")}
    return type(trainable.__name__, (BoundTrainable, base), known)


def can_save(cls: type) -> bool:
    """Whether a trainable class has checkpoints: a function may report some, a class has to say how."""
    return issubclass(cls, FunctionTrainable) or _has(cls, "save_checkpoint")


def asks_for_resources(cls: Any) -> bool:
    """Whether a trainable says itself what its trials need, by `default_resource_request` or `tune.with_resources`."""
    try:
        return cls.default_resource_request({}) is not None
    except Exception:  # it looks into the configuration, so it has something to say
        return True


def _has(cls: type, method: str) -> bool:
    return getattr(cls, method) is not getattr(Trainable, method)
