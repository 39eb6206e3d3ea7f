"""A training that costs nothing, whose trials can take one another's place in a process, as Ray's Tuner asks for."""

from __future__ import annotations

from typing import Any

from ray import tune


class Tiny(tune.Trainable):
    """Reports its configuration."""

    def setup(self, config: dict[str, Any]) -> None:
        """Takes the configuration."""
        self.x = config["x"]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """As a new one."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, float]:
        """Reports."""
        return {"loss": self.x}
