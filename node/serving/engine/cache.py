"""Where keys and values of read tokens lie: pages of 16 tokens, shared between rows that begin alike.

A row owns a list of pages; a full page can be found again by what was read up to its end: base, adapter version and all
tokens (PagedAttention, arXiv 2309.06180). Knows no model and no sampling.

Invariant: a page is written only by the row that took it fresh and only up to its end, so a shared page never changes; what
a row finds here was computed with its own base, version and tokens. Pages that nobody reads are kept up to a bound, least
recently used first out.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

PAGE = 16  # tokens


@dataclass(slots=True, kw_only=True)
class Row:
    """One sequence under way. `ids` are all tokens read so far, the found ones included."""

    slot: int
    version: str
    ids: list[int] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)  # of its full pages, first to last
    sound: bool = True  # False: a step failed, so the content of its last pages is unknown

    @property
    def length(self) -> int:
        """Tokens whose keys and values are stored."""
        return len(self.ids)


class Pages:
    """Which page holds what, who reads it, and which are free. Numbers only; `Storage` has the numbers' content."""

    def __init__(self, count: int, *, kept: int, base: str) -> None:
        """`count` pages in all, of which up to `kept` stay for later rows when nobody reads them."""
        self._base, self._kept = base, kept
        self._free = list(range(count - 1, -1, -1))
        self._readers = [0] * count
        self._key: dict[int, bytes] = {}
        self._page: dict[bytes, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # found again by key, read by nobody

    @property
    def kept(self) -> int:
        """Pages that nobody reads and that a later row may find."""
        return len(self._idle)

    def find(self, row: Row, ids: Sequence[int]) -> int:
        """Give a fresh row the pages that hold the beginning of `ids`; returns how many tokens these are.

        At least the last token stays to be read: its logits are not stored.
        """
        for at in range(0, (len(ids) - 1) // PAGE * PAGE, PAGE):
            key = self._key_of(row, ids[at : at + PAGE])
            page = self._page.get(key)
            if page is None:
                break
            self._idle.pop(page, None)
            self._readers[page] += 1
            row.pages.append(page)
            row.keys.append(key)
            row.ids.extend(ids[at : at + PAGE])
        return row.length

    def extend(self, row: Row, ids: Sequence[int]) -> None:
        """Make room for `ids` at the end of the row and count them as read. Raises MemoryError: no page is left."""
        row.ids.extend(ids)
        while len(row.pages) * PAGE < len(row.ids):
            row.pages.append(self._take())

    def publish(self, row: Row) -> None:
        """Let later rows find the pages that this row has filled; called once their content is computed."""
        for number in range(len(row.keys), row.length // PAGE if row.sound else 0):
            key = self._key_of(row, row.ids[number * PAGE : (number + 1) * PAGE])
            row.keys.append(key)
            if key not in self._page:  # else another row computed the same: its page is the one that is found
                self._page[key] = row.pages[number]
                self._key[row.pages[number]] = key

    def release(self, row: Row, *, keep: bool) -> None:
        """Give back the row's pages; without `keep` nothing that it alone reads is found again."""
        for page in reversed(row.pages):  # the end of a text is forgotten before its beginning
            self._readers[page] -= 1
            if self._readers[page]:
                continue
            if keep and page in self._key:
                self._idle[page] = None
            else:
                self._forget(page)
        row.pages.clear()
        while len(self._idle) > self._kept:
            self._forget(self._idle.popitem(last=False)[0])

    def _take(self) -> int:
        if not self._free and self._idle:
            self._forget(self._idle.popitem(last=False)[0])
        if not self._free:
            raise MemoryError("couldn't read more tokens: all pages are taken")
        page = self._free.pop()
        self._readers[page] = 1
        return page

    def _forget(self, page: int) -> None:
        if (key := self._key.pop(page, None)) is not None:
            self._page.pop(key, None)
        self._free.append(page)

    def _key_of(self, row: Row, ids: Sequence[int]) -> bytes:
        before = row.keys[-1] if row.keys else f"{self._base}\0{row.version}".encode()
        return hashlib.sha256(before + b"\0" + np.asarray(ids, dtype="<i4").tobytes()).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """Keys [layers, pages, kv_heads, head_dim, PAGE] and values [layers, pages, kv_heads, PAGE, head_dim].

    Memory is taken from the system as pages are first written.
    """

    keys: Tensor
    values: Tensor

    @staticmethod
    def make(
        *, layers: int, pages: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> Storage:
        """Room for `pages` pages."""
        keys = torch.empty((layers, pages, kv_heads, head_dim, PAGE), dtype=dtype, device=device)
        values = torch.empty((layers, pages, kv_heads, PAGE, head_dim), dtype=dtype, device=device)
        return Storage(keys=keys, values=values)
