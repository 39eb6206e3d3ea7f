"""A dict of tensors as one vector, and back: what linear solvers work on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor


class Layout:
    """Where each tensor of a dict lies in one flat vector.

    The vector has the widest dtype of the tensors and at least single precision: sums over all weights in half
    precision would not be worth having. It lies on the device of the first.

    Args:
        tensors: real floating-point tensors by name.

    Attributes:
        names: in the order of the vector.
        size: length of the vector.
        dtype: of the vector.
        device: of the vector.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.names = tuple(tensors)
        self._likes = tuple(tensors.values())
        self._sizes = [tensor.numel() for tensor in self._likes]
        self.size = sum(self._sizes)
        self.dtype = torch.float32
        for tensor in self._likes:
            self.dtype = torch.promote_types(self.dtype, tensor.dtype)
        self.device = self._likes[0].device
        self._uniform = all(t.dtype == self.dtype and t.device == self.device for t in self._likes)

    def flatten(self, tensors: Iterable[Tensor | None]) -> Tensor:
        """The vector (size,) of tensors in the layout's order; zeros for None."""
        parts = [
            torch.zeros(size, dtype=self.dtype, device=self.device) if tensor is None else tensor.reshape(-1)
            for tensor, size in zip(tensors, self._sizes, strict=True)
        ]
        if not self._uniform:
            parts = [part.to(self.device, self.dtype) for part in parts]
        return torch.cat(parts)

    def flatten_dict(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The vector of a dict that has all names."""
        return self.flatten(tensors[name].detach() for name in self.names)

    def unflatten(self, vector: Tensor) -> Sequence[Tensor]:
        """The tensors of a vector (size,), views of it where dtype and device are the same."""
        parts = torch.split(vector, self._sizes)
        if self._uniform:
            return [part.view(like.shape) for part, like in zip(parts, self._likes, strict=True)]
        return [
            part.view(like.shape).to(like.device, like.dtype) for part, like in zip(parts, self._likes, strict=True)
        ]

    def unflatten_dict(self, vector: Tensor) -> dict[str, Tensor]:
        """The same by name."""
        return dict(zip(self.names, self.unflatten(vector), strict=True))
