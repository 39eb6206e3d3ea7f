"""Going back to where torch's random generators were, so that a function that draws gives the same again."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Generators:
    """The states of torch's global generators as they are now: of the CPU, and of the GPUs that tensors are on.

    Args:
        tensors: whose devices count.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._cpu = torch.get_rng_state()
        devices = {tensor.device for tensor in tensors.values() if tensor.device.type == "cuda"}
        self._gpu = {device: torch.cuda.get_rng_state(device) for device in devices}

    def rewind(self) -> None:
        """Puts them back."""
        torch.set_rng_state(self._cpu)
        for device, state in self._gpu.items():
            torch.cuda.set_rng_state(state, device)
