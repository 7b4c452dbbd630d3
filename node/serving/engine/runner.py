"""One forward pass for all rows: prompt chunks and single tokens together, each row with its own adapter.

`LlamaRunner` owns the weights, the pages of keys and values and the active slots; it decides nothing: which rows run, which
adapters are active and what is drawn from the logits is said from outside (`scheduler`, `sampling`). One thread calls it.

Invariant: a row's logits depend on its own tokens and its adapter only, whatever else is in the step.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from contrib.llama import Unfit
from contrib.weights import tensors
from node.errors_serving import ContextTooLong
from node.serving.engine import kernels
from node.serving.engine.adapter import HostAdapter
from node.serving.engine.cache import PAGE, Pages, Row, Storage
from node.serving.engine.model import ModelShape, load_weights, read_config, rotary
from node.serving.engine.ops import Batch, Segment, TorchPass
from node.serving.engine.pool import Pool

ROWS = 16
SLOTS = 128
EMBEDDING = "\0embedding"  # a version of its own: all hidden states are wanted, so nothing may come from the cache
KEPT_BYTES = 256 << 20  # keys and values of ended rows that later prompts may begin with
MEMORY_SHARE = 0.25  # of the machine's memory may hold keys and values


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


class LlamaRunner:
    """Runs a Llama-family model. Shapes and families: `node.serving.engine.model`."""

    def __init__(
        self,
        folder: Path,
        *,
        base: str = "",
        rows: int = ROWS,
        slots: int = SLOTS,
        context: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        use_kernels: bool = True,
    ) -> None:
        """Load from a local folder. `base` is its digest; `context` may shorten what the model reads.

        Without `use_kernels`, or where they can't be built, the pass runs in torch; `kernels` says what it runs with.

        Raises:
            Unfit: another family, see `node.serving.engine.fallback`.
            BadModel: damaged files.
        """
        self._config = config = read_config(folder)
        self.device: Final = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype: Final = dtype or default_dtype(folder, self.device)
        self.rows: Final = rows
        self.vocabulary: Final = config.vocabulary
        self.shape: Final = ModelShape(sites=config.sites(), base=base)
        token = 2 * config.layers * config.kv_heads * config.head_dim * self.dtype.itemsize  # bytes in the cache
        self.context: Final = min(config.context, context or config.context, _room(self.device) // (token * rows))
        self._pool = Pool(self.shape, slots=slots, device=self.device, dtype=self.dtype)
        count = rows * -(-self.context // PAGE)
        self._pages = Pages(count, kept=KEPT_BYTES // (token * PAGE), base=base)
        storage = Storage.make(
            layers=config.layers,
            pages=count,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            dtype=self.dtype,
            device=self.device,
        )
        weights = load_weights(folder, config, dtype=self.dtype, device=self.device)
        tables = rotary(config, self.context, self.device)
        built = kernels.load() if use_kernels and self.device.type == "cpu" and kernels.fit(config) else None
        self._pass: Any = (
            TorchPass(config, weights, tables, storage, self._pool)
            if built is None
            else kernels.NativePass(built, config, weights, tables, storage, self._pool)
        )
        self.kernels: Final[str] = self._pass.name
        self._rows: dict[int, Row] = {}
        self._free = list(range(rows - 1, -1, -1))

    # -- adapters ----------------------------------------------------------------------------------------------------
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

    # -- rows --------------------------------------------------------------------------------------------------------
    def open(self, ids: Sequence[int], slot: int, version: str) -> Opened:
        """Take a row for a prompt; `version` names what is in `slot`, for the prefix cache.

        Raises:
            MemoryError: all rows are taken.
            ContextTooLong: the prompt alone is longer than the model reads.
        """
        if len(ids) > self.context:
            raise ContextTooLong(
                f"couldn't answer: the model reads at most {self.context} tokens, the prompt has {len(ids)}",
                limit=self.context,
            )
        if not self._free:
            raise MemoryError("couldn't open a row: all are taken")
        number = self._free.pop()
        self._rows[number] = row = Row(slot=slot, version=version)
        return Opened(row=number, cached=self._pages.find(row, ids))

    def close(self, row: int, keep: bool) -> None:
        """Free a row; with `keep` later rows may begin with what it read."""
        self._pages.release(self._rows.pop(row), keep=keep)
        self._free.append(row)

    def step(self, work: Sequence[Work]) -> list[Tensor | None]:
        """Read every row's tokens in one pass; for each the wanted logits, float32 [1 or len(ids), vocabulary].

        "hidden" gives float32 [len(ids), hidden] instead, normed as the head reads them. Numbers may be not finite.

        Raises:
            ContextTooLong: a row would grow over the context; nothing was read.
        """
        for item in work:
            if self._rows[item.row].length + len(item.ids) > self.context:
                raise ContextTooLong(
                    f"couldn't answer: the model reads at most {self.context} tokens", limit=self.context
                )
        rows = [self._rows[item.row] for item in work]
        before = [row.sound for row in rows]
        for row in rows:
            row.sound = False  # until the pass is over
        with torch.inference_mode():
            batch = self._batch(work)
            hidden = self._pass.hidden(batch)
            for row, sound in zip(rows, before, strict=True):
                row.sound = sound
                self._pages.publish(row)
            return self._results(work, batch, hidden)

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

    # -- the pass ----------------------------------------------------------------------------------------------------
    def _batch(self, work: Sequence[Work]) -> Batch:
        ids: list[int] = []
        segments: list[Segment] = []
        for item in work:
            row = self._rows[item.row]
            begin, start, count = len(ids), row.length, len(item.ids)
            self._pages.extend(row, item.ids)
            ids += item.ids
            segments.append(Segment(begin=begin, count=count, start=start, slot=row.slot, pages=row.pages))
        return Batch(ids=ids, segments=tuple(segments))

    def _results(self, work: Sequence[Work], batch: Batch, hidden: Tensor) -> list[Tensor | None]:
        spans: list[tuple[int, int]] = []
        for item, segment in zip(work, batch.segments, strict=True):
            end = segment.begin + segment.count
            spans.append((segment.begin if item.want == "all" else end - (item.want == "last"), end))
        wanted = [place for begin, end in spans for place in range(begin, end)]
        chosen = (
            hidden if len(wanted) == len(hidden) else hidden[torch.tensor(wanted, dtype=torch.long, device=self.device)]
        )
        logits = self._pass.logits(chosen) if wanted else torch.empty(0)
        parts = logits.split([end - begin for begin, end in spans])
        found: list[Tensor | None] = [part if len(part) else None for part in parts]
        for at, (item, s) in enumerate(zip(work, batch.segments, strict=True)):
            if item.want == "hidden":
                found[at] = hidden[s.begin : s.begin + s.count].float()
        return found


def default_dtype(folder: Path, device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU that has it, and on a CPU for a model that is stored so; else float32, which loses nothing."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    stored = {tensor.dtype for tensor in tensors(folder).values()}
    return torch.bfloat16 if stored == {"BF16"} else torch.float32


def _room(device: torch.device) -> int:
    """Bytes that keys and values may take."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * MEMORY_SHARE)
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * MEMORY_SHARE)


def open_runner(folder: Path, **options: Any) -> Any:
    """The runner for the model in `folder`: `LlamaRunner`, or transformers' own forward for a family it does not cover.

    `options` are those of `LlamaRunner`. Raises BadModel: no model that either can load.
    """
    try:
        return LlamaRunner(folder, **options)
    except Unfit:
        from node.serving.engine.fallback import FallbackRunner

        return FallbackRunner(folder, **options)
