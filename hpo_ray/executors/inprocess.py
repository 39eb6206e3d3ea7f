"""executor=inprocess: trials run in this process, one step after another. No Ray cluster is started.

Ray's controller reaches its trainables through an actor manager only. This one calls them directly: `train` when its
turn comes, everything else at once. It gives the same decisions as Ray's with as many workers.
"""

from __future__ import annotations

import itertools
import logging
import sys
import traceback
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from hpo_ray.clusters.nodes import Request
from hpo_ray.errors import ConfigError
from hpo_ray.executors.base import Executor
from hpo_ray.executors.deadline import check_interruptible
from hpo_ray.executors.internals import ActorHandle, TrackedActor


class TrialFailure(Exception):
    """What a trainable raised, with its traceback as text: what Ray's error of a remote task holds, too."""


class Call:
    """A call of a trainable's method, in place of the future that Ray has for it.

    Attributes:
        value: what the method returned; None before it ran.
        error: what it raised.
    """

    def __init__(
        self,
        actor: TrackedActor,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        on_result: Any,
        on_error: Any,
    ) -> None:
        self.actor, self.method, self.args, self.kwargs = actor, method, args, kwargs
        self.on_result, self.on_error = on_result, on_error
        self.value: Any = None
        self.error: Exception | None = None
        self.wanted = True
        """Whether somebody still waits for the outcome: the controller drops calls of a trial that it stops."""
        self._done = False

    def run(self, trainable: Any) -> None:
        """Calls the method, once."""
        if self._done:
            return
        self._done = True
        try:
            self.value = getattr(trainable, self.method)(*self.args, **self.kwargs)
        except (Exception, SystemExit, KeyboardInterrupt):  # an actor that exits is a failed trial, not a failed study
            self.error = TrialFailure(traceback.format_exc())
            self.error.__cause__ = sys.exc_info()[1]

    def deliver(self) -> None:
        """Tells the controller the outcome, once."""
        if not self.wanted:
            return
        self.wanted = False
        if self.error is not None:
            if self.on_error:
                self.on_error(self.actor, self.error)
        elif self.on_result:
            self.on_result(self.actor, self.value)


class InProcessActorManager:
    """Stands in for Ray's actor manager: actors are plain objects, futures are done when asked for.

    Each `next` handles one event. Events of saving, restoring and resetting come before the next step of training.

    Args:
        workers: how many trials are under way at a time.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._ids = itertools.count()
        self._waiting: dict[TrackedActor, tuple[type, dict[str, Any]]] = {}
        self._objects: dict[TrackedActor, Any] = {}
        self._failed: set[TrackedActor] = set()
        self._calls: dict[TrackedActor, set[Call]] = {}
        self._events: deque[Callable[[], None]] = deque()
        self.steps: deque[Call] = deque()
        """All steps of training that wait for their turn."""
        self.in_step = False
        self.interrupted: TrackedActor | None = None
        """The actor that a signal has interrupted in the middle of a step."""
        # The controller reads these two by name.
        self._live_actors_to_ray_actors_resources: dict[TrackedActor, tuple[ActorHandle, None]] = {}
        self._actor_task_events = self

    @property
    def num_live_actors(self) -> int:
        """Actors that hold a worker."""
        return len(self._live_actors_to_ray_actors_resources)

    @property
    def num_pending_actors(self) -> int:
        """Actors that wait for a worker."""
        return len(self._waiting)

    @property
    def num_total_actors(self) -> int:
        """Live and pending."""
        return self.num_live_actors + self.num_pending_actors

    @property
    def num_actor_tasks(self) -> int:
        """Events and steps to come."""
        return len(self._events) + len(self.steps)

    def next(self, timeout: float | None = None) -> bool:
        """Handles one event; False if there is none."""
        self._start_waiting()
        if self._events:
            self._events.popleft()()
        elif self.steps:
            call = self.steps.popleft()
            if call.wanted:
                self._step(call)
                self.resolve_future(call)
        else:
            return False
        self._start_waiting()
        return True

    def add_actor(
        self,
        cls: type,
        kwargs: dict[str, Any],
        resource_request: Any,
        on_start: Any = None,
        on_stop: Any = None,
        on_error: Any = None,
    ) -> TrackedActor:
        """Asks for an actor, which is built when a worker is free."""
        actor = TrackedActor(next(self._ids), on_start=on_start, on_stop=on_stop, on_error=on_error)
        self._waiting[actor] = (cls, kwargs)
        return actor

    def remove_actor(self, tracked_actor: TrackedActor, kill: bool = False, stop_future: Any = None) -> bool:
        """Frees an actor's worker; False if it had none."""
        if tracked_actor in self._failed or self._waiting.pop(tracked_actor, None) is not None:
            return False
        if stop_future is not None:
            stop_future.wanted = False
        if tracked_actor not in self._objects:
            tracked_actor._on_start = tracked_actor._on_stop = tracked_actor._on_error = None
        self._events.append(partial(self._stopped, tracked_actor))
        return True

    def schedule_actor_task(
        self,
        tracked_actor: TrackedActor,
        method_name: str,
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
        on_result: Any = None,
        on_error: Any = None,
        _return_future: bool = False,
    ) -> Call | None:
        """Calls a method of a trainable: `train` later, in turn, all others now. The outcome is an event."""
        call = Call(tracked_actor, method_name, args or (), kwargs or {}, on_result, on_error)
        if tracked_actor in self._objects:
            self._calls.setdefault(tracked_actor, set()).add(call)
            if method_name == "train":
                self.steps.append(call)
            else:
                call.run(self._objects[tracked_actor])
                self._done(call)
        return call if _return_future else None

    def _done(self, call: Call) -> None:
        """Something other than a step was called: its outcome is an event."""
        self._events.append(lambda: self.resolve_future(call))

    def _step(self, call: Call) -> None:
        """Runs a step of training."""
        self.in_step = True
        try:
            call.run(self._objects[call.actor])
        except BaseException:
            self.interrupted = call.actor
            raise
        finally:
            self.in_step = False

    def drop_steps(self) -> None:
        """No further step is taken: only what has happened is handled."""
        for call in self.steps:
            call.wanted = False
        self.steps.clear()

    def resolve_future(self, future: Call) -> None:
        """Delivers the outcome of a call now."""
        self._calls.get(future.actor, set()).discard(future)  # a long trial has many, each with its report
        future.deliver()

    def clear_actor_task_futures(self, tracked_actor: TrackedActor) -> None:
        """Drops the calls of an actor whose outcome nobody waits for any more."""
        for call in self._calls.pop(tracked_actor, ()):
            call.wanted = False

    def is_actor_started(self, tracked_actor: TrackedActor) -> bool:
        """Whether it holds a worker."""
        return tracked_actor in self._live_actors_to_ray_actors_resources

    def is_actor_failed(self, tracked_actor: TrackedActor) -> bool:
        """Whether it could not be built."""
        return tracked_actor in self._failed

    def get_live_actors_resources(self) -> dict[str, float]:
        """Only Ray's progress table asks for it."""
        return {}

    def cleanup(self) -> None:
        """Stops what is left."""
        for trainable in self._objects.values():
            Call(TrackedActor(-1), "stop", (), {}, None, None).run(trainable)
        for left in (self._waiting, self._objects, self._failed, self._calls, self._events, self.steps):
            left.clear()
        self._live_actors_to_ray_actors_resources.clear()

    def _start_waiting(self) -> None:
        while self._waiting and self.num_live_actors < self.workers:
            actor, (cls, kwargs) = next(iter(self._waiting.items()))
            del self._waiting[actor]
            self._live_actors_to_ray_actors_resources[actor] = (ActorHandle(), None)
            self._start(actor, partial(self._build, actor, cls, kwargs))

    def _start(self, actor: TrackedActor, build: Callable[[], None]) -> None:
        """An actor has got a worker."""
        self._events.append(build)

    def _build(self, actor: TrackedActor, cls: type, kwargs: dict[str, Any]) -> None:
        if not self.is_actor_started(actor):
            return
        self.in_step = True  # it may import much, and read data
        try:
            self._objects[actor] = cls(**kwargs)
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            failure = TrialFailure(traceback.format_exc())
            failure.__cause__ = error
            self._fail(actor, failure)
            return
        finally:
            self.in_step = False
        if actor._on_start:
            actor._on_start(actor)

    def _fail(self, actor: TrackedActor, error: TrialFailure) -> None:
        """An actor could not be built."""
        self._failed.add(actor)
        self._free(actor, None)
        if actor._on_error:
            actor._on_error(actor, error)

    def _stopped(self, actor: TrackedActor) -> None:
        self._free(actor, actor._on_stop)

    def _free(self, actor: TrackedActor, on_stop: Any) -> None:
        self.clear_actor_task_futures(actor)
        self._live_actors_to_ray_actors_resources.pop(actor, None)
        self._objects.pop(actor, None)
        if on_stop:
            on_stop(actor)


class InProcessExecutor(Executor):
    """Runs trials in this process.

    A trial that hangs is interrupted (`budget.trial_timeout_s`), unless it does so in C code that never returns to
    Python. A function trainable runs in a thread, and a thread that waits can't be ended: it is left behind as a
    daemon, and ends when it wakes up.

    Args:
        workers: how many trials are under way at a time; their steps run one after another all the same.

    Raises:
        ConfigError: `workers` is not a whole number >= 1.
    """

    name = "inprocess"

    def __init__(self, workers: int = 1) -> None:
        if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
            raise ConfigError(f"executor.workers={workers!r}: must be a whole number >= 1", key="executor.workers")
        self.workers = workers
        self._manager: InProcessActorManager | None = None

    @property
    def in_step(self) -> bool:
        """Whether a step of training is under way."""
        return self._manager is not None and self._manager.in_step

    def start(self, request: Request) -> int:
        """Checks that a GPU is there if one is asked for, and gives the number of workers."""
        logging.getLogger("ray.tune").setLevel(logging.WARNING)  # as in Ray's workers, whose lines nobody sees
        gpus = sum(bundle.get("GPU", 0.0) for bundle in request.bundles)
        if gpus > 0:
            import torch

            if gpus > torch.cuda.device_count():
                raise ConfigError(
                    f"resources.gpu={gpus:g}: this process sees {torch.cuda.device_count()} GPUs; use resources=cpu",
                    key="resources.gpu",
                )
        return self.workers

    def call_timeout(self, trial_timeout_s: float | None) -> float | None:
        """All of them: a signal interrupts each call of a trainable that takes longer."""
        if trial_timeout_s is not None:
            check_interruptible(trial_timeout_s)
        return trial_timeout_s

    def actor_manager(
        self, time_attr: str, until_s: float | None, trial_timeout_s: float | None = None
    ) -> InProcessActorManager:
        """What runs the trainables."""
        self._manager = InProcessActorManager(self.workers)
        return self._manager

    def stop(self) -> None:
        """Nothing to stop."""
