"""Where a trial is in its data: batches of shuffled epochs, from any point on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Cursor:
    """Draws batches of row numbers through epochs that are shuffled anew one after another.

    Args:
        generator: a CPU generator, which the order of each epoch is drawn from when the epoch begins.
        state: what `state` of another one was; None for the start of an epoch.
    """

    def __init__(self, generator: torch.Generator, state: tuple[Any, ...] | None = None) -> None:
        self.generator = generator
        # The generator's state from which the order was drawn is small, where the order is as long as the data.
        self._shuffle: Tensor | None = None
        self._position = 0
        self._order: Tensor | None = None
        if state is not None:
            self._shuffle, self._position = state

    @property
    def state(self) -> tuple[Tensor, int] | None:
        """(the generator's state at the start of the epoch, rows met in it); None before the first."""
        return None if self._shuffle is None else (self._shuffle, self._position)

    def restore(self, state: tuple[Any, ...] | None, generator: Tensor) -> None:
        """Goes to where another cursor and its generator were."""
        self.generator.set_state(generator)
        self._shuffle, self._position = (None, 0) if state is None else state
        self._order = None

    def next(self, n: int, size: int) -> Tensor:
        """The row numbers of the next batch of `size` of `n` rows; the last of an epoch has what is left."""
        if self._shuffle is None or self._position >= n:
            self._shuffle, self._position = self.generator.get_state(), 0
            self._order = torch.randperm(n, generator=self.generator)
        elif self._order is None:  # it goes on from a checkpoint
            shuffle = torch.Generator()
            shuffle.set_state(self._shuffle)
            self._order = torch.randperm(n, generator=shuffle)
        assert self._order is not None
        batch = self._order[self._position : self._position + size]
        self._position += size
        return batch
