"""What every runner is asked for, and what all of them keep: which rows are taken, and which adapters are in which slots.

Knows no model: a runner derives from `Runner` and computes. Invariant: a slot that a row uses is not given back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from node.serving.engine.adapter import HostAdapter
from node.serving.engine.pool import Pool

ROWS = 16
SLOTS = 128
EMBEDDING = "\0embedding"  # a version of its own: all hidden states are wanted, so nothing may come from the cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Tokens that a row reads in a step, and what is wanted: "none", logits of the "last" or of "all", or "hidden" states."""

    row: int
    ids: Sequence[int]
    want: str = "last"


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A fresh row; the first `cached` tokens of its prompt are read already."""

    row: int
    cached: int


class Runner(ABC):
    """The bookkeeping of a runner; `open`, `close` and `step` are its own."""

    def __init__(self, pool: Pool, rows: int) -> None:
        self.rows: Final = rows
        self._pool = pool
        self._rows: dict[int, Any] = {}  # whatever the runner knows of a row; its `slot` at least
        self._free = list(range(rows - 1, -1, -1))

    @abstractmethod
    def open(self, ids: Sequence[int], slot: int, version: str) -> Opened:
        """Take a row for a prompt; `version` names what is in `slot`, for the prefix cache.

        Raises:
            MemoryError: all rows are taken.
            ContextTooLong: the prompt alone is longer than the model reads.
        """

    @abstractmethod
    def close(self, row: int, keep: bool) -> None:
        """Free a row; with `keep` later rows may begin with what it read."""

    @abstractmethod
    def step(self, work: Sequence[Work]) -> list[Tensor | None]:
        """Read every row's tokens; for each the wanted logits, float32 [1 or len(ids), vocabulary].

        "hidden" gives float32 [len(ids), hidden] instead, normed as the head reads them. Numbers may be not finite.

        Raises:
            ContextTooLong: a row would grow over the context; nothing was read.
        """

    def activate(self, adapter: HostAdapter) -> int:
        """Put the adapter into a slot (1 or more). Raises MemoryError: none is free."""
        return self._pool.put(adapter)

    def deactivate(self, slot: int) -> None:
        """Give a slot back. Raises ValueError: a row still uses it."""
        if any(row.slot == slot for row in self._rows.values()):
            raise ValueError(f"couldn't deactivate slot {slot}: a row uses it")
        self._pool.remove(slot)

    def slots_free(self, rank: int) -> int:
        """How many more adapters of this rank can be activated."""
        return self._pool.free(rank)

    def embed(self, ids: Sequence[int]) -> Tensor:
        """The mean of the base's last hidden states over the tokens, float32 [hidden].

        Raises:
            ContextTooLong: more tokens than the model reads.
            MemoryError: all rows are taken.
        """
        opened = self.open(ids, 0, EMBEDDING)
        try:
            (found,) = self.step([Work(row=opened.row, ids=ids, want="hidden")])
            return torch.empty(0) if found is None else found.mean(0)
        finally:
            self.close(opened.row, keep=False)

    def _take(self, row: Any) -> int:
        """The number under which a row is kept. Raises MemoryError: all are taken."""
        if not self._free:
            raise MemoryError("couldn't open a row: all are taken")
        number = self._free.pop()
        self._rows[number] = row
        return number

    def _leave(self, number: int) -> Any:
        """Give a row back; what was known of it."""
        row = self._rows.pop(number)
        self._free.append(number)
        return row
