"""What every trainable with PyTorch needs so that a trial's numbers depend on nothing but the trial.

A trial's numbers depend on its configuration, its seed and its checkpoint: not on the trials that ran before it in the
same process, nor on the process. So every call runs under the trial's own random states and thread count, and puts back
those that it found.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ray.tune import Trainable
from torch import Tensor

from hpo_ray.errors import ConfigError
from hpo_ray.trainables.context import TrialContext
from hpo_ray.trainables.devices import assigned_device

_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class SeededTrainable(Trainable):  # type: ignore[misc]  # Ray ships no types
    """Base of the trainables with PyTorch: their device, precision and random states.

    Attributes:
        device: the GPU that the trial was given, or a share of, the first of several; otherwise `cpu`.
        config: the trial's hyperparameters.
    """

    device: torch.device
    config: dict[str, Any]

    _context: TrialContext
    _random_state: RandomState

    def setup(self, config: dict[str, Any]) -> None:
        """Builds a new trial."""
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Turns this object into a new trial, equal to a fresh one.

        Returns:
            True: Ray may reuse the actor.
        """
        self._start(new_config)
        return True

    def _start(self, config: dict[str, Any]) -> None:
        raise NotImplementedError(f"{type(self).__name__} must define _start(self, config)")

    def _choose_device(self) -> torch.device:
        resources = self.trial_resources
        gpus = self._context.gpus if resources is None else resources.required_resources.get("GPU", 0)
        precision = self._context.precision
        if precision not in _AUTOCAST:
            raise ConfigError(
                f"trainable.precision={precision} is unknown: use one of {', '.join(_AUTOCAST)}.",
                key="trainable.precision",
            )
        if gpus > 0:
            if not torch.cuda.is_available():
                raise RuntimeError(
                    f"The trial was given {gpus:g} GPU, but torch.cuda.is_available() is False in its process. Install "
                    f"a CUDA build of torch (this is {torch.__version__}) and its driver, or give the trials no GPU."
                )
            return assigned_device()
        if precision == "fp16":
            raise ConfigError(
                "trainable.precision=fp16 needs a GPU, and the trial has none: use trainable.precision=bf16 or fp32, "
                "or give the trials a GPU.",
                key="trainable.precision",
            )
        return torch.device("cpu")

    def _autocast(self) -> contextlib.AbstractContextManager[None]:
        dtype = _AUTOCAST[self._context.precision]
        return contextlib.nullcontext() if dtype is None else torch.autocast(self.device.type, dtype=dtype)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Runs the block under the trial's own random states and thread count, and puts back those of the process.

        The number of threads decides how sums are split, and so their last digits.
        """
        outside, threads = RandomState.capture(self.device), torch.get_num_threads()
        self._random_state.apply(self.device)
        own_threads = max(1, int(self._context.cpus))
        if own_threads != threads:
            torch.set_num_threads(own_threads)
        try:
            yield
        finally:
            self._random_state = RandomState.capture(self.device)
            outside.apply(self.device)
            if own_threads != threads:
                torch.set_num_threads(threads)


@dataclass(frozen=True)
class RandomState:
    """The states of the generators that all code in a process shares: of torch, its GPU, numpy and `random`."""

    cpu: Tensor
    gpu: Tensor | None
    numpy: Any
    python: Any

    @classmethod
    def seeded(cls, seed: int, device: torch.device) -> RandomState:
        """The states that a seed (32 bits) leads to, without touching any generator in use."""
        return cls(
            cpu=torch.Generator().manual_seed(seed).get_state(),
            gpu=torch.Generator(device).manual_seed(seed).get_state() if device.type == "cuda" else None,
            numpy=np.random.RandomState(seed).get_state(),
            python=random.Random(seed).getstate(),
        )

    @classmethod
    def capture(cls, device: torch.device) -> RandomState:
        """The states as they are now."""
        return cls(
            cpu=torch.get_rng_state(),
            gpu=torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            numpy=np.random.get_state(),
            python=random.getstate(),
        )

    def apply(self, device: torch.device) -> None:
        """Makes these the states of the process."""
        torch.set_rng_state(self.cpu)
        if self.gpu is not None:
            torch.cuda.set_rng_state(self.gpu, device)
        np.random.set_state(self.numpy)
        random.setstate(self.python)

    def to_plain(self) -> dict[str, Any]:
        """The states as tensors and plain values, which `torch.load(weights_only=True)` accepts."""
        kind, keys, position, has_gauss, gauss = self.numpy
        return {
            "cpu": self.cpu,
            "gpu": self.gpu,
            "numpy": (kind, keys.tolist(), position, has_gauss, gauss),
            "python": self.python,
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any], own_gpu: Tensor | None) -> RandomState:
        """What `to_plain` gave. A trial on a GPU that loads a checkpoint from a CPU keeps its `own_gpu` state."""
        kind, keys, position, has_gauss, gauss = plain["numpy"]
        return cls(
            cpu=plain["cpu"],
            gpu=own_gpu if own_gpu is None or plain["gpu"] is None else plain["gpu"],
            numpy=(kind, np.array(keys, dtype=np.uint32), position, has_gauss, gauss),
            python=plain["python"],
        )


def plain(value: Any) -> Any:
    """A configuration as builtin values only, to be compared and to be read from a file without running code."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or type(value) in (bool, int, float, str):
        return value
    return getattr(value, "__qualname__", None) or repr(value)


def without_numpy(state: Any) -> Any:
    """The state with numpy's numbers as builtin ones: a learning rate may be one, and `weights_only` refuses them."""
    if type(state) is dict:
        return {key: without_numpy(item) for key, item in state.items()}
    if type(state) in (list, tuple):
        return type(state)(map(without_numpy, state))
    return state.item() if isinstance(state, np.generic) else state
