"""What our searchers share: known configurations first, numbers, and a gate that leaves paused trials out.

A suggestion is a function of (history, seed, number): a searcher holds no generator whose state could get lost.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from hpo_ray.space import Space


class SpaceSearcher(Searcher):  # type: ignore[misc]  # ray ships no types
    """A Ray Tune searcher over a `Space`. Subclasses implement `propose`.

    In a `ray.tune.Tuner` of your own it respects `max_concurrent_trials`, counting only trials that run or are about
    to: a scheduler of ours tells it which trials are paused. Ray's own limiter counts these too, and a scheduler
    that waits for a rung to fill then waits for ever.

    Args:
        space: what to search.
        metric: name of the metric; by default the one given to `TuneConfig`.
        mode: `min` or `max`; by default the one given to `TuneConfig`.
        seed: the study's seed. Same seed, same suggestions.
        initial: known configurations to suggest first. Fixed values may be left out.

    Raises:
        ConfigError: a configuration of `initial` does not lie in the space.
    """

    def __init__(
        self,
        space: Space,
        metric: str | None = None,
        mode: str | None = None,
        seed: int = 0,
        initial: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__(metric=metric, mode=mode)
        self._metric: str | None = metric
        self._mode: str | None = mode
        self.space = space
        self.seed = seed
        self.initial = [space.check(config, where=f"searcher.initial[{i}]") for i, config in enumerate(initial)]
        self.configs: dict[str, dict[str, Any]] = {}
        """Configurations of the trials that have not ended, by id: Ray's callbacks carry none."""
        self._number = 0
        self._active: set[str] = set()
        self._max_active: int | None = None

    @abstractmethod
    def propose(self, number: int) -> dict[str, Any]:
        """The configuration of the number-th trial, from 0."""

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next configuration; None while as many trials are active as may be."""
        if not self.has_room():
            return None
        number, self._number = self._number, self._number + 1
        config = self.initial[number] if number < len(self.initial) else self.propose(number)
        self.configs[trial_id] = config
        self._active.add(trial_id)
        return dict(config)

    def has_room(self) -> bool:
        """Whether another trial may be active."""
        return self._max_active is None or len(self._active) < self._max_active

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A trial is over. `result` is None when it was stopped while it was paused."""
        self.configs.pop(trial_id, None)
        self._active.discard(trial_id)

    def on_pause(self, trial_id: str) -> None:
        """A scheduler of ours paused the trial."""
        self._active.discard(trial_id)

    def on_unpause(self, trial_id: str) -> None:
        """A scheduler of ours promoted the trial."""
        self._active.add(trial_id)

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Takes metric and mode from `TuneConfig`; False if Tune brings a search space of its own."""
        if config:
            return False
        self._metric = self._metric or metric
        self._mode = self._mode or mode
        return True

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Takes the limit over from Ray's `ConcurrencyLimiter`."""
        self._max_active = max_concurrent
        return True

    def save(self, checkpoint_path: str) -> None:
        """Writes how many configurations were suggested, as JSON."""
        Path(checkpoint_path).write_text(json.dumps({"number": self._number}))

    def restore(self, checkpoint_path: str) -> None:
        """Reads what `save` wrote."""
        self._number = json.loads(Path(checkpoint_path).read_text())["number"]
