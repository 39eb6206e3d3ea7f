"""What one trial gets: cores, GPUs or a share of one, on which nodes, in how many processes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hpo_ray.errors import ConfigError

STRATEGIES = ("ddp", "fsdp")
"""How the processes of one trial share its training."""
PLACEMENTS = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
"""Ray's strategies to place the processes of one trial."""
ACCELERATOR_LABEL = "ray.io/accelerator-type"
_UNUSED = 0.02
"""The share of a GPU that may stay without a trial, so that 0.33 is a third."""


@dataclass(frozen=True)
class Resources:
    """What one trial gets.

    Attributes:
        cpu: processor cores, of each of its processes.
        gpu: GPUs of each of its processes: 0, a share 1/n, or a whole number.
        workers: processes that train one trial together.
        strategy: how they do: `ddp` (each has the whole model) or `fsdp` (each has a part of it).
        placement: where Ray puts them: `PACK`, `SPREAD`, `STRICT_PACK` or `STRICT_SPREAD`.
        labels: of the nodes that it may run on: a value, or several of which one will do, by the label's name.
        free_gpu_memory: the share of its part of a GPU's memory that must be free before it starts.
    """

    cpu: float = 1.0
    gpu: float = 0.0
    workers: int = 1
    strategy: str = "ddp"
    placement: str = "PACK"
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    free_gpu_memory: float = 0.9

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> Resources:
        """The resources that a configuration's section asks for.

        Raises:
            ConfigError: they can't be.
        """
        for key in ("cpu", "gpu"):
            if not math.isfinite(section[key]) or section[key] < 0:
                raise ConfigError(f"resources.{key}={section[key]:g}: must be >= 0", key=f"resources.{key}")
        if section["cpu"] == section["gpu"] == 0:
            raise ConfigError("resources.cpu=0: a trial without cores needs a GPU; use 1", key="resources.cpu")
        _check_gpu(section["gpu"])
        if section["workers"] < 1:
            raise ConfigError(
                f"resources.workers={section['workers']}: must be a whole number >= 1", key="resources.workers"
            )
        if section["workers"] > 1 and 0 < section["gpu"] < 1:
            raise ConfigError(
                f"resources.gpu={section['gpu']:g}: each of the {section['workers']} processes of a trial needs a GPU "
                f"of its own; use resources.gpu=1",
                key="resources.gpu",
            )
        for key, allowed in (("strategy", STRATEGIES), ("placement", PLACEMENTS)):
            if section[key] not in allowed:
                raise ConfigError(
                    f"resources.{key}={section[key]}: must be one of {', '.join(allowed)}", key=f"resources.{key}"
                )
        share = section["free_gpu_memory"]
        if not 0 <= share <= 1:
            raise ConfigError(
                f"resources.free_gpu_memory={share:g}: must be a share from 0 (not looked at) to 1",
                key="resources.free_gpu_memory",
            )
        given = section["labels"] or {}
        if not isinstance(given, Mapping):
            raise ConfigError(f"resources.labels={given!r}: must be a mapping, {{NAME: VALUE}}", key="resources.labels")
        labels = {str(name): _values(f"resources.labels.{name}", v) for name, v in given.items()}
        if section["accelerator"] is not None:
            labels[ACCELERATOR_LABEL] = _values("resources.accelerator", section["accelerator"])
        return cls(
            cpu=section["cpu"],
            gpu=section["gpu"],
            workers=section["workers"],
            strategy=section["strategy"],
            placement=section["placement"],
            labels=labels,
            free_gpu_memory=share,
        )

    @property
    def bundle(self) -> dict[str, float]:
        """What one process gets, as Ray writes it."""
        return {kind: amount for kind, amount in (("CPU", self.cpu), ("GPU", self.gpu)) if amount}

    @property
    def label_selector(self) -> dict[str, str]:
        """The labels as Ray's label selectors."""
        return {n: v[0] if len(v) == 1 else f"in({','.join(v)})" for n, v in self.labels.items()}


def _check_gpu(gpu: float) -> None:
    """Raises `ConfigError` for a share of a GPU that leaves a part of it unused, and for one GPU and a half."""
    if gpu > 1 and gpu != int(gpu):
        raise ConfigError(
            f"resources.gpu={gpu:g}: more than one GPU must be a whole number; use {math.floor(gpu)} or "
            f"{math.ceil(gpu)}",
            key="resources.gpu",
        )
    if not 0 < gpu < 1:
        return
    fits = int(1 / gpu + 1e-9)
    if 1 - fits * gpu > _UNUSED:
        raise ConfigError(
            f"resources.gpu={gpu:g}: {fits} trials fit on a GPU, and {1 - fits * gpu:.0%} of it would stay unused; use "
            f"{_floored(1 / fits)} ({fits} on a GPU) or {_floored(1 / (fits + 1))} ({fits + 1})",
            key="resources.gpu",
        )


def _floored(share: float) -> str:
    """A share in Ray's four digits, not rounded up: three times 0.3334 is more than a GPU."""
    return f"{math.floor(share * 1e4 + 1e-6) / 1e4:g}"


def _values(key: str, value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if not values or not all(isinstance(v, str | int | float) and str(v).strip() for v in values):
        raise ConfigError(f"{key}={value!r}: must be the value of a label, or a list of some", key=key)
    return tuple(str(v) for v in values)
