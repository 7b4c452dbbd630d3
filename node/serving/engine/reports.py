"""What a lane tells the outside: pieces and ends of requests as they come, counters when asked.

Values only. Invariant: a request ends with `done`, `failed` or `cancelled`, once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from torch import Tensor

from node.ports import Piece
from node.serving.engine.answer import Request
from node.serving.engine.embedding import Embeds

_MOST_NAMES: Final = 1024  # whose counts are kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Reports:
    """Where a lane says what has happened to a request."""

    piece: Callable[[Request, Piece], None]
    vector: Callable[[Embeds, int, Tensor], None]
    done: Callable[[Request | Embeds], None]
    failed: Callable[[int, Exception], None]
    cancelled: Callable[[int], None]


@dataclass(slots=True)
class Counts:
    """What has happened on a base so far."""

    steps: int = 0
    tokens_prefill: int = 0
    tokens_decode: int = 0
    prefix_hit_tokens: int = 0
    queue_full: int = 0
    cancelled: int = 0
    deadlines: int = 0
    by_name: OrderedDict[str, list[int]] = field(default_factory=OrderedDict)  # [requests, tokens]

    def named(self, name: str) -> list[int]:
        """The counts of one served name; those of the longest unused names are forgotten."""
        found = self.by_name.setdefault(name, [0, 0])
        self.by_name.move_to_end(name)
        while len(self.by_name) > _MOST_NAMES:
            self.by_name.popitem(last=False)
        return found

    def flat(self) -> dict[str, int]:
        """All counters but those by name."""
        return {name: getattr(self, name) for name in Counts.__slots__ if name != "by_name"}
