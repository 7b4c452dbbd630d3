"""One forward pass for all rows: prompt chunks and single tokens together, each row with its own adapter.

`LlamaRunner` owns the weights, the pages of keys and values and the active slots; it decides nothing: which rows run, which
adapters are active and what is drawn from the logits is said from outside (`scheduler`, `sampling`). One thread calls it.

Invariant: a row's logits depend on its own tokens and its adapter only, whatever else is in the step.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from contrib.llama_config import Unfit
from contrib.weights import tensors
from node.errors_serving import ContextTooLong
from node.serving.engine import kernels
from node.serving.engine.cache import PAGE, Pages, Row, Storage
from node.serving.engine.model import ModelShape, load_weights, read_config, rotary, sites
from node.serving.engine.ops import Batch, Segment, TorchPass
from node.serving.engine.pool import Pool
from node.serving.engine.rows import ROWS, SLOTS, Opened, Runner, Work

KEPT_BYTES = 256 << 20  # keys and values of ended rows that later prompts may begin with
MEMORY_SHARE = 0.25  # of the machine's memory may hold keys and values


class LlamaRunner(Runner):
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
        self.vocabulary: Final = config.vocabulary
        self.shape: Final = ModelShape(sites=sites(config), base=base)
        token = 2 * config.layers * config.kv_heads * config.head_dim * self.dtype.itemsize  # bytes in the cache
        self.context: Final = min(config.context, context or config.context, _room(self.device) // (token * rows))
        super().__init__(Pool(self.shape, slots=slots, device=self.device, dtype=self.dtype), rows)
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
        row = Row(slot=slot, version=version)
        return Opened(row=self._take(row), cached=self._pages.find(row, ids))

    def close(self, row: int, keep: bool) -> None:
        """Free a row; with `keep` later rows may begin with what it read."""
        self._pages.release(self._leave(row), keep=keep)

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
