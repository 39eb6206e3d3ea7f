"""What a trial knows about itself besides its configuration: number, seed, arguments, device.

A configuration holds hyperparameters only, so that existing training code runs unchanged. Everything else that a
trainable may ask for comes from `get_context()`. Outside of a study it answers with the defaults below.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from hpo_ray.space import Space

FIDELITIES = ("epochs", "steps", "data_fraction")
"""What a unit of resource can be."""

SPLIT, TRIAL, SEARCHER, SCHEDULER, WORKER = range(5)
"""Roles of the random streams that one study seed is the root of."""


def stream(seed: int, role: int, number: int = 0, *numbers: int) -> np.random.SeedSequence:
    """The random stream of one role and number, or several, under a study's seed.

    Streams of different roles or numbers are statistically independent (`SeedSequence` spawn keys).
    """
    return np.random.SeedSequence(seed, spawn_key=(role, number, *numbers))


@dataclass(frozen=True)
class TrialContext:
    """What a trial knows about itself besides its configuration.

    Attributes:
        number: the trial's number in its study, from 0.
        study_seed: the study's `seed`, the same for all trials.
        max_resource: the resource at which a trial of this study is fully trained, in units of `step()`.
        args: the constants of `task.args`: data paths and the like.
        cpus: processor cores that the trial was given.
        gpus: GPUs, or the fraction of one, that the trial was given.
        space: the space that configurations come from; None outside of a study.
        precision: `fp32`, `bf16` or `fp16`: the arithmetic of `TorchTrainable`'s forward passes.
        fidelity: `epochs`, `steps` or `data_fraction`: what a unit of resource is.
        steps_per_unit: with `steps`, how many steps of the optimizer a unit is.
        workers: processes that train one trial together.
        strategy: `ddp` or `fsdp`: how they do.
        rank: the number of this process among them, from 0.
        meeting: where they meet, `host:port`; empty where the first still has to start the others.
        free_gpu_memory: the share of its part of a GPU's memory that must be free before a trial starts on it.
    """

    number: int = 0
    study_seed: int = 0
    max_resource: int = 1
    args: Mapping[str, Any] = field(default_factory=dict)
    cpus: float = 1.0
    gpus: float = 0.0
    precision: str = "fp32"
    space: Space | None = None
    fidelity: str = "epochs"
    steps_per_unit: int = 1
    workers: int = 1
    strategy: str = "ddp"
    rank: int = 0
    meeting: str = ""
    free_gpu_memory: float = 0.9

    @property
    def seed(self) -> int:
        """A seed of this trial's own (63 bits): weights, shuffling, dropout."""
        return int(stream(self.study_seed, TRIAL, self.number).generate_state(1, np.uint64)[0] >> 1)

    @property
    def split_seed(self) -> int:
        """A seed (32 bits) that all trials of a study share: the split of the data."""
        return int(stream(self.study_seed, SPLIT).generate_state(1)[0])


_current = TrialContext()


def get_context() -> TrialContext:
    """The context of the trial that is running in this process; the defaults outside of a study."""
    return _current


@contextmanager
def use_context(context: TrialContext) -> Iterator[None]:
    """Makes `context` the answer of `get_context()` inside the block.

    It is held per process and not per thread: Ray runs a training function in a thread of its own, and one trial
    at a time is active in a process.
    """
    global _current
    previous, _current = _current, context
    try:
        yield
    finally:
        _current = previous
