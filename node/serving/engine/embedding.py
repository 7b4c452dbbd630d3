"""One embed job: each input read in chunks like a prompt, its hidden states summed up on the way.

Knows no runner. Invariant: the vector is the mean of the base's last hidden states over all tokens of the input, of length 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

HIDDEN: Final = "hidden"  # what a row wants of what it reads


@dataclass(slots=True, kw_only=True, eq=False)
class Embeds:
    """The job: a vector of each input by the base. Times are the engine's clock."""

    number: int
    inputs: Sequence[Sequence[int]]
    tenant: str
    arrived: float
    deadline: float | None
    left: int = 0
    over: bool = False


@dataclass(slots=True, eq=False)
class Embedding:
    """One of its inputs."""

    request: Embeds
    index: int
    row: int = -1
    read: int = 0
    _sum: Tensor | None = None

    @property
    def ids(self) -> Sequence[int]:
        """What is to be read."""
        return self.request.inputs[self.index]

    def work(self, most: int) -> tuple[Sequence[int], str]:
        """The tokens to read next, and what is wanted of them."""
        return self.ids[self.read : self.read + most], HIDDEN

    def take(self, hidden: Tensor) -> Tensor | None:
        """Take the states [tokens, hidden] of what was read; the vector [hidden] when that was the end."""
        self.read += len(hidden)
        found = hidden.sum(0, dtype=torch.float32)
        self._sum = found if self._sum is None else self._sum + found
        if self.read < len(self.ids):
            return None
        return torch.nn.functional.normalize(self._sum / self.read, dim=0)
