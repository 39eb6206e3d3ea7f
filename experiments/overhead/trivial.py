"""A training that costs nothing, as a function and as a class: what is left of a study is what running it costs."""

from __future__ import annotations

from typing import Any

from ray import tune

REPORTS = 9


def objective(config: dict[str, Any]) -> None:
    for _ in range(REPORTS):
        tune.report({"loss": config["x"]})


class Objective(tune.Trainable):
    """The same; whoever runs it has to stop it."""

    def setup(self, config: dict[str, Any]) -> None:
        """Takes the configuration."""
        self.x = config["x"]

    def step(self) -> dict[str, float]:
        """Reports."""
        return {"loss": self.x}


class Resumable(Objective):
    """The same with checkpoints, for methods that pause trials."""

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, float]:
        """All there is."""
        return {"x": self.x}

    def load_checkpoint(self, checkpoint: dict[str, float]) -> None:
        """All there is."""
        self.x = checkpoint["x"]
