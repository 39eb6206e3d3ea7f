"""A training that costs nothing, as a function and as a class: what is left of a study is what running it costs."""

from __future__ import annotations

from typing import Any

from ray import tune

REPORTS = 9


def objective(config: dict[str, Any]) -> None:
    for _ in range(REPORTS):
        tune.report({"loss": config["x"]})


class Objective(tune.Trainable):
    """The same; `reset_config` lets Ray's own Tuner reuse its actor, too."""

    def setup(self, config: dict[str, Any]) -> None:
        self.x = config["x"]

    def step(self) -> dict[str, float]:
        return {"loss": self.x}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True
