"""A PyTorch module as a function of its weights, running statistics and the like left alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


class Functional:
    """Calls a module with weights that come as an argument: `torch.func.functional_call` on copies of its buffers.

    An estimator may call a loss several times at several weights. In training mode a BatchNorm layer normalises by its
    batch, and would also move its running statistics at each call; here it does so in `update_buffers` only.

        model = Functional(nn.Sequential(...))
        params = model.params()
        loss = cross_entropy(model(params, x), y)

    Args:
        module: the module. It keeps its own weights; its mode (`train()`, `eval()`) counts.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def params(self) -> dict[str, Tensor]:
        """Copies of the module's weights that are trained, by name."""
        return {n: p.detach().clone() for n, p in self.module.named_parameters() if p.requires_grad}

    def __call__(self, params: Mapping[str, Tensor], *inputs: Any, **options: Any) -> Any:
        """The module's output with these weights. Its buffers stay as they are."""
        buffers = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        return functional_call(self.module, ({**params}, buffers), inputs, options)

    def update_buffers(self, params: Mapping[str, Tensor], *inputs: Any, **options: Any) -> None:
        """Runs the module for the sake of its buffers: once for each training step, under `torch.no_grad()`."""
        functional_call(self.module, {**params}, inputs, options)
