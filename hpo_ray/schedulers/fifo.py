"""First in, first out: every trial is trained to `max_resource`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpo_ray.errors import ConfigError
from hpo_ray.schedulers.brackets import DEFAULT_TRIALS, Budget, Ladder, Plan, check_geometry
from hpo_ray.schedulers.core import CONTINUE, NO_MOVES, Action, Decision, Moves


class FIFOCore:
    """Trains every trial to `max_resource`, whatever it reports.

    Args:
        max_resource: where a trial stops, in whole units (epochs by default).
    """

    pauses = False
    ranks = False

    def __init__(self, max_resource: int) -> None:
        check_geometry(max_resource, 1, 2)
        self.max_resource = max_resource
        self.ladder = Ladder.single(max_resource)

    def plan(self, budget: Budget) -> Plan:
        """`budget.trials` full trainings; 20 when neither trials nor time nor resource are given."""
        if budget.rounds is not None:
            raise ConfigError(
                f"budget.rounds={budget.rounds}: this scheduler has no brackets to repeat; use budget.trials",
                key="budget.rounds",
            )
        trials = budget.trials
        if trials is None and not budget.open_ended:
            trials = DEFAULT_TRIALS
        return Plan(self.max_resource, trials, limit=budget.resource)

    def add(self, trial_id: str, config: Mapping[str, Any] | None = None) -> None:
        """Nothing to note."""

    def report(self, trial_id: str, resource: int, loss: float) -> Decision:
        """Stops at `max_resource`."""
        if resource < self.max_resource:
            return CONTINUE
        return Decision(Action.STOP, f"reached max_resource {self.max_resource}")

    def next_decision(self, trial_id: str) -> int:
        """`max_resource`."""
        return self.max_resource

    def end(self, trial_id: str, loss: float | None) -> None:
        """Nothing to note."""

    def forget(self, trial_id: str) -> None:
        """Nothing to note."""

    def advance(self, source_finished: bool, room: int) -> Moves:
        """Nothing is ever paused."""
        return NO_MOVES

    def waits_for(self) -> str:
        """Never waits."""
        return ""

    def tags(self, trial_id: str) -> Mapping[str, int]:
        """None."""
        return {}
