"""executor=simulated: a cluster of any size in this process, on a virtual clock.

Trials really train, here, one step after another; what is simulated is when. Each step, checkpoint and start takes its
declared time on the worker that it occupies, and an event heap moves the clock from one end of those to the next.
Ray Tune's controller and the study's own scheduler and searcher run on top, unchanged: what they decide is what they
would decide on a cluster on which everything takes that long.
"""

from __future__ import annotations

import heapq
import inspect
import itertools
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ray.tune.result import RESULT_DUPLICATE, TIME_THIS_ITER_S, TIME_TOTAL_S

from hpo_ray.errors import ConfigError, StudyError
from hpo_ray.executors.deadline import KEY as TIMEOUT_KEY
from hpo_ray.executors.inprocess import Call, InProcessActorManager, InProcessExecutor, TrialFailure
from hpo_ray.executors.internals import MemoryStorage, TrackedActor
from hpo_ray.importing import locate
from hpo_ray.location import Location
from hpo_ray.trainables.context import WORKER, stream

_SAVE, _TRAIN = 0, 1
"""Of what ends at the same moment, saving, restoring and starting come before training."""


_SHORTEST_BIN_S = 1e-9


class Costs:
    """How many virtual seconds a step takes.

    Args:
        step_s: seconds of every step; None to ask the report and then the function.
        function: `cost(config, resource)`, the seconds of the step that ends at `resource`; None for 1 second.
        path: what messages call the function.
        time_attr: name of the reported value that counts resource.
    """

    def __init__(
        self,
        step_s: float | None,
        function: Callable[[Mapping[str, Any], int], float] | None,
        path: str | None,
        time_attr: str,
    ) -> None:
        self._step_s = step_s
        self._function = function
        self._path = path
        self._time_attr = time_attr
        self._sources: dict[str, None] = {}

    @property
    def source(self) -> str:
        """Where the seconds came from, in words."""
        if self._step_s is not None:
            return f"{self._step_s:g} s a step (executor.step_s)"
        return ", ".join(self._sources) or "no step"

    def seconds(self, trainable: Any, result: Mapping[str, Any]) -> float:
        """The seconds of the step that gave this result.

        Raises:
            StudyError: they are negative or not finite, or the function raised.
        """
        if RESULT_DUPLICATE in result:  # a function has returned: that is no step
            return 0.0
        if self._step_s is not None:
            return self._step_s
        resource = result.get(self._time_attr, 0)
        if "cost" in result:
            name, seconds = "cost", result["cost"]
            self._sources["the reported metric cost"] = None
        elif self._function is not None:
            name = f"task.cost={self._path}"
            self._sources[name] = None
            try:
                seconds = self._function(trainable.config, resource)
            except Exception as error:  # of the user's code
                raise StudyError(f"{name} raised {type(error).__name__}: {error} at resource {resource}") from error
        else:
            self._sources["1 s a step: nothing says what a step costs"] = None
            return 1.0
        if getattr(seconds, "ndim", None) == 0 and hasattr(seconds, "item"):  # a scalar of numpy's or torch's
            seconds = seconds.item()
        number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if not number or not math.isfinite(seconds) or seconds < 0:
            raise StudyError(
                f"{name}: {seconds!r} for the step to resource {resource} of {trainable.config}; must be a finite "
                f"number of seconds >= 0"
            )
        return float(seconds)

    def of_failure(self) -> float:
        """The seconds of a step that raised."""
        return self._step_s or 0.0


class Utilisation:
    """How many workers were busy when, in at most `bins` bins: the bins widen as the study gets longer."""

    def __init__(self, workers: int, bins: int = 64) -> None:
        self._workers = workers
        self._busy = [0.0] * bins
        self._width = 0.0

    def add(self, start: float, end: float) -> None:
        """One worker was busy from `start` to `end`."""
        if end <= start:
            return
        bins = len(self._busy)
        self._width = self._width or max(end / bins, _SHORTEST_BIN_S)
        while end > self._width * bins:
            self._busy = [a + b for a, b in zip(self._busy[::2], self._busy[1::2], strict=True)] + [0.0] * (bins // 2)
            self._width *= 2
        first = min(int(start / self._width), bins - 1)
        for i in range(first, bins):
            low, high = i * self._width, (i + 1) * self._width
            if low >= end:
                break
            self._busy[i] += min(end, high) - max(start, low)

    def mean(self, end: float) -> float:
        """The share of the workers that was busy until `end`, on average."""
        return min(1.0, sum(self._busy) / (self._workers * end)) if end > 0 else 0.0

    def over_time(self, end: float) -> list[tuple[float, float]]:
        """(end of a bin in seconds, share of the workers that was busy in it)."""
        shares = []
        for i, busy in enumerate(self._busy):
            low, high = i * self._width, min(end, (i + 1) * self._width)
            if high <= low:
                break
            shares.append((high, min(1.0, busy / (self._workers * (high - low)))))
        return shares


class SimulatedActorManager(InProcessActorManager):
    """The in-process manager with an event heap: whatever takes time ends later on the virtual clock.

    Args:
        workers: how many there are.
        costs: what a step takes on a worker of speed 1.
        startup_s: seconds before a trial's first step on a worker.
        checkpoint_s: seconds to save a checkpoint, and to load one.
        speeds: of the workers, in turn; a step takes its cost divided by this.
        failures: of a worker in an hour.
        seed: decides when workers fail.
        until_s: where the clock stops; None for nowhere.
        trial_timeout_s: a step that takes longer is a hang: it fails after so many seconds.
    """

    def __init__(
        self,
        workers: int,
        costs: Costs,
        startup_s: float = 0.0,
        checkpoint_s: float = 0.0,
        speeds: Sequence[float] = (1.0,),
        failures: float = 0.0,
        seed: int = 0,
        until_s: float | None = None,
        trial_timeout_s: float | None = None,
    ) -> None:
        super().__init__(workers)
        self.now = 0.0
        self._trial_timeout_s = math.inf if trial_timeout_s is None else trial_timeout_s
        self._until_s = math.inf if until_s is None else until_s
        self.utilisation = Utilisation(workers)
        self.lost_workers = 0
        self._costs = costs
        self._seconds_of = {"reset": startup_s, "save": checkpoint_s, "restore": checkpoint_s}
        self._startup_s = startup_s
        self._speeds = [speeds[worker % len(speeds)] for worker in range(workers)]
        # The fastest first, so that slow ones stand idle when not all are needed.
        self._free_workers = sorted((-speed, worker) for worker, speed in enumerate(self._speeds))
        self._worker_of: dict[TrackedActor, int] = {}
        self._heap: list[tuple[float, int, int, partial[None]]] = []
        self._since: dict[TrackedActor, float] = {}
        """When what an actor does now has started."""
        self._sequence = itertools.count()
        self._handling = False
        self._asked = False
        """Whether the controller has started something since time last moved: it may have more to start."""
        self._failures = failures
        self._seed = seed
        self._next_failure: dict[int, tuple[float, np.random.Generator]] = {}

    @property
    def num_actor_tasks(self) -> int:
        """Events and steps to come."""
        return super().num_actor_tasks + len(self._heap)

    def next(self, timeout: float | None = None) -> bool:
        """Handles one event; time moves on when none is due and the controller has nothing more to start."""
        self._start_waiting()
        self._handling = True
        try:
            if not self._events:
                if self._asked:
                    return True
                self._run_steps()
                if not self._heap:
                    return False
                if self._heap[0][0] > self._until_s:  # it would end after the study
                    self.now = self._until_s
                    return True
                self.now, _, _, event = heapq.heappop(self._heap)
                event()
            else:
                self._events.popleft()()
        finally:
            self._handling = self._asked = False
        self._start_waiting()
        return True

    def add_actor(self, *args: Any, **kwargs: Any) -> TrackedActor:
        """See the in-process manager."""
        self._asked |= not self._handling
        return super().add_actor(*args, **kwargs)

    def schedule_actor_task(self, *args: Any, **kwargs: Any) -> Call | None:
        """See the in-process manager."""
        self._asked |= not self._handling
        return super().schedule_actor_task(*args, **kwargs)

    def busy_until(self, end: float) -> Utilisation:
        """How busy the workers were, what is under way at `end` included."""
        for since in self._since.values():
            self.utilisation.add(since, end)
        return self.utilisation

    def _run_steps(self) -> None:
        while self.steps:
            call = self.steps.popleft()
            if not call.wanted:
                continue
            self._step(call)
            seconds = self._costs.of_failure()
            if call.error is None:
                seconds = self._costs.seconds(self._objects[call.actor], call.value)
                seconds /= self._speeds[self._worker_of[call.actor]]
                if not math.isfinite(seconds):
                    raise StudyError(f"executor.speeds={self._speeds}: a step takes {seconds} seconds; raise them")
                real = call.value.get(TIME_THIS_ITER_S, 0.0)
                call.value[TIME_THIS_ITER_S] = seconds
                call.value[TIME_TOTAL_S] = call.value.get(TIME_TOTAL_S, 0.0) - real + seconds
            if seconds > self._trial_timeout_s:
                seconds = self._trial_timeout_s
                call.error = TrialFailure(f"no report for {seconds:g} s ({TIMEOUT_KEY})")
            self._later(seconds, _TRAIN, call.actor, partial(self._deliver, call), call)

    def _done(self, call: Call) -> None:
        seconds = self._seconds_of.get(call.method, 0.0)
        if seconds or self._failures:
            self._later(seconds, _SAVE, call.actor, partial(self._deliver, call), call)
        else:
            super()._done(call)

    def _start(self, actor: TrackedActor, build: Callable[[], None]) -> None:
        self._worker_of[actor] = heapq.heappop(self._free_workers)[1]
        if self._startup_s or self._failures:
            self._later(self._startup_s, _SAVE, actor, partial(self._build_at, actor, build), None)
        else:
            super()._start(actor, build)

    def _free(self, actor: TrackedActor, on_stop: Any) -> None:
        worker = self._worker_of.pop(actor, None)
        self._idle(actor)
        if worker is not None:
            heapq.heappush(self._free_workers, (-self._speeds[worker], worker))
        super()._free(actor, on_stop)

    def _later(self, seconds: float, order: int, actor: TrackedActor, event: partial[None], call: Call | None) -> None:
        """An event in some seconds, unless the worker is lost before."""
        end = self.now + seconds
        worker = self._worker_of[actor]
        lost = self._lost_at(worker, self.now, end)
        if lost is not None:
            end, order, event = lost, _SAVE, partial(self._lose, worker, actor, call)
        self._since.setdefault(actor, self.now)
        heapq.heappush(self._heap, (end, order, next(self._sequence), event))

    def _idle(self, actor: TrackedActor) -> None:
        """What the actor did is over."""
        since = self._since.pop(actor, None)
        if since is not None:
            self.utilisation.add(since, self.now)

    def _deliver(self, call: Call) -> None:
        self._idle(call.actor)
        self.resolve_future(call)

    def _build_at(self, actor: TrackedActor, build: Callable[[], None]) -> None:
        self._idle(actor)
        build()

    def _lose(self, worker: int, actor: TrackedActor, call: Call | None) -> None:
        """A worker is gone, and what it was doing with it; another takes its place at once."""
        self._idle(actor)
        error = TrialFailure(f"worker {worker} was lost at {self.now:.6g} s of virtual time (executor.failures)")
        if call is not None:
            if call.wanted:
                self.lost_workers += 1
                call.error = error
                self.resolve_future(call)
        elif self.is_actor_started(actor):
            self.lost_workers += 1
            self._fail(actor, error)

    def _lost_at(self, worker: int, start: float, end: float) -> float | None:
        """When a worker fails between two moments: failures come at random, `failures` of them in an hour."""
        if not self._failures:
            return None
        if worker not in self._next_failure:
            self._next_failure[worker] = 0.0, np.random.default_rng(stream(self._seed, WORKER, worker))
        moment, draws = self._next_failure[worker]
        while moment <= start:  # those of an idle worker hit nobody
            moment += draws.exponential(3600.0 / self._failures)
        self._next_failure[worker] = moment, draws
        return moment if moment <= end else None


class SimulatedExecutor(InProcessExecutor):
    """Runs trials in this process as if on a cluster. See the module.

    What a step takes: `step_s` if given; else what the trainable reports as `cost`; else what `cost` gives; else 1 s.
    A step that raises reports nothing, and takes `step_s` or no time. One that takes longer than
    `budget.trial_timeout_s` of virtual time hangs; code that really hangs is not interrupted.

    Args:
        workers: how many trials run at a time.
        step_s: seconds that every step takes; None: see above.
        startup_s: seconds before a trial's first step on a worker, each time: process, data, model.
        checkpoint_s: seconds to save a checkpoint, and as many to load one.
        speeds: of the workers, in turn: `[1, 0.5]` makes every second one half as fast. None: all 1.
        failures: how often a worker is lost in an hour, with what it was doing since the last checkpoint; another takes
            its place at once. The trial goes on from its last checkpoint as often as `failure.max_retries` says.
        cost: dotted path of a function `cost(config, resource)`: the seconds of the step that ends at `resource`.
        seed: decides when workers are lost.

    Raises:
        ConfigError: a number is out of its range, or the function can't be imported.
    """

    name = "simulated"
    in_memory: ClassVar[bool] = True

    def __init__(
        self,
        workers: int = 8,
        step_s: float | None = None,
        startup_s: float = 0.0,
        checkpoint_s: float = 0.0,
        speeds: Sequence[float] | None = None,
        failures: float = 0.0,
        cost: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(workers)
        for key, value in (
            ("step_s", step_s),
            ("startup_s", startup_s),
            ("checkpoint_s", checkpoint_s),
            ("failures", failures),
        ):
            if value is not None and not _finite(value, least=0.0):
                what = "workers lost in an hour" if key == "failures" else "seconds"
                raise ConfigError(
                    f"executor.{key}={value!r}: must be a finite number of {what} >= 0", f"executor.{key}"
                )
        if speeds is not None and not (
            isinstance(speeds, Sequence) and speeds and all(_finite(s, least=0.0) and s > 0 for s in speeds)
        ):
            raise ConfigError(
                f"executor.speeds={speeds!r}: must be a list of numbers > 0, '[1, 0.5]', or null", "executor.speeds"
            )
        self._settings: dict[str, Any] = {
            "startup_s": float(startup_s),
            "checkpoint_s": float(checkpoint_s),
            "speeds": tuple(speeds or (1.0,)),
            "failures": float(failures),
            "seed": seed,
        }
        self._costs = partial(Costs, step_s, _cost_function(cost), cost)
        self._simulation: SimulatedActorManager | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    def call_timeout(self, trial_timeout_s: float | None) -> None:
        """None: hangs are those of virtual time."""

    def actor_manager(
        self, time_attr: str, until_s: float | None, trial_timeout_s: float | None = None
    ) -> SimulatedActorManager:
        """What runs the trainables."""
        self._cost = self._costs(time_attr)
        self._manager = self._simulation = SimulatedActorManager(
            self.workers, self._cost, until_s=until_s, trial_timeout_s=trial_timeout_s, **self._settings
        )
        return self._simulation

    def storage(self, folder: Path, trackers: bool, location: Location | None = None) -> MemoryStorage:
        """Memory: a simulated study leaves no checkpoints."""
        self._scratch = tempfile.TemporaryDirectory(prefix="hpo_ray-")
        storage = MemoryStorage(str(folder.parent), folder.name)
        storage.scratch, storage.folders = self._scratch.name, trackers
        return storage

    def clock(self, since: float = 0.0) -> Callable[[], float]:
        """Virtual seconds, from 0: a simulated study that is taken up runs again."""
        self._started = time.monotonic()
        return lambda: 0.0 if self._simulation is None else round(self._simulation.now, 6)

    def summary(self) -> Mapping[str, Any] | None:
        """Workers, how busy they were, and what the simulation itself took."""
        simulation = self._simulation
        if simulation is None:
            return None
        busy = simulation.busy_until(simulation.now)
        return {
            "workers": self.workers,
            "cost": self._cost.source,
            "utilisation": round(busy.mean(simulation.now), 4),
            "utilisation_over_time": [[round(t, 6), round(u, 4)] for t, u in busy.over_time(simulation.now)],
            "lost_workers": simulation.lost_workers,
            "wall_seconds": round(time.monotonic() - self._started, 3),
        }

    def stop(self) -> None:
        """Clears the temporary folder."""
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None


def _finite(value: Any, least: float) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value >= least


def _cost_function(path: str | None) -> Callable[[Mapping[str, Any], int], float] | None:
    if path is None:
        return None
    function = locate("task.cost", path)
    try:
        inspect.signature(function).bind({}, 1)
    except TypeError as error:
        raise ConfigError(
            f"task.cost={path}: must be a function `cost(config, resource)` that gives seconds: {error}", "task.cost"
        ) from None
    return function  # type: ignore[no-any-return]
