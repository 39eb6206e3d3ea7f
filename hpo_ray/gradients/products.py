"""Products with the second derivatives of a loss, by autograd: a Hessian is never formed.

The gradient is computed once with its graph, and each product is one pass back through that graph (reverse over
reverse). So K products cost K passes and hold one graph, whatever K is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from hpo_ray.gradients.errors import NonFiniteLoss, NotDifferentiable
from hpo_ray.gradients.flat import Layout

Loss = Callable[[dict[str, Tensor], dict[str, Tensor]], Tensor]
"""A scalar from weights and hyperparameters, each a dict of tensors."""

NO_PARAMS = "inner_loss does not depend on params: is it computed from copies of them?"


class InnerProblem:
    """The gradient of a loss in the weights at one point, and products with its derivatives.

    Args:
        loss: of `(params, hparams)`, the inner loss.
        params: where: the weights. Taken as they are, without what they depend on.
        hparams: where: the hyperparameters, likewise.

    Attributes:
        params: leaves of the graph.
        hparams: leaves of the graph.
        layout: of vectors like the weights.
        products: how many Hessian-vector products were taken.

    Raises:
        NotDifferentiable: the loss is not a scalar that depends on the weights.
        NonFiniteLoss: it is infinite or not a number.
    """

    def __init__(self, loss: Loss, params: Mapping[str, Tensor], hparams: Mapping[str, Tensor]) -> None:
        self.params, self.hparams = leaves(params, "params"), leaves(hparams, "hparams")
        self.layout = Layout(self.params)
        self.products = 0
        with torch.enable_grad():
            self.value = scalar(loss(self.params, self.hparams), "inner_loss")
            self._gradient = torch.autograd.grad(
                self.value, list(self.params.values()), create_graph=True, allow_unused=True
            )
        if all(g is None for g in self._gradient):
            raise NotDifferentiable(NO_PARAMS)

    def gradient(self) -> Tensor:
        """The gradient in the weights as a vector (P,)."""
        return self.layout.flatten(None if g is None else g.detach() for g in self._gradient)

    def hessian_product(self, vector: Tensor) -> Tensor:
        """A v for the Hessian A in the weights; `vector` and result (P,)."""
        self.products += 1
        return self.layout.flatten(self._back(list(self.params.values()), vector))

    def mixed_product(self, vector: Tensor) -> dict[str, Tensor | None]:
        """The derivative in the hyperparameters of (gradient in the weights) . v.

        Returns:
            A tensor like each hyperparameter; None for one that the gradient in the weights does not depend on.
        """
        found = self._back(list(self.hparams.values()), vector)
        return dict(zip(self.hparams, found, strict=True))

    def _back(self, inputs: list[Tensor], vector: Tensor) -> tuple[Tensor | None, ...]:
        parts = self.layout.unflatten(vector)
        live = [(g, v) for g, v in zip(self._gradient, parts, strict=True) if g is not None and g.requires_grad]
        if not live:
            return (None,) * len(inputs)
        outputs, vectors = zip(*live, strict=True)
        return torch.autograd.grad(outputs, inputs, vectors, retain_graph=True, allow_unused=True)


def leaves(tensors: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """The same values, as the start of a graph.

    Raises:
        NotDifferentiable: there are none, or one is no real floating-point tensor.
    """
    if not tensors:
        raise NotDifferentiable(f"{what} is empty: there is nothing to differentiate")
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise NotDifferentiable(f"{what}[{name!r}] is of {kind}: must be a floating-point tensor")
    return {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}


def scalar(value: object, what: str) -> Tensor:
    """The value of a loss, checked.

    Raises:
        NotDifferentiable: it is no scalar tensor, or without a graph.
        NonFiniteLoss: it is infinite or not a number.
    """
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise NotDifferentiable(f"{what} must return a scalar tensor, and it is {got}: take its mean or sum")
    if not value.requires_grad:
        raise NotDifferentiable(
            f"{what} depends on neither params nor hparams: is it computed under torch.no_grad(), from .detach() or "
            f".item(), or from the module's own weights in place of torch.func.functional_call(model, params, x)?"
        )
    if not torch.isfinite(value):
        raise NonFiniteLoss(f"{what} is {value.item()}")
    return value.reshape(())
