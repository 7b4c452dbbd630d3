"""The runner's interface over transformers' own forward pass, for the families that `LlamaRunner` does not cover.

Slower: rows run one after another, each with its own key-value cache, and there is no prefix cache. Adapters work by hooks
on the linears: whatever row runs, its adapter's B(Ax) is added to each output.

Invariant: as for `LlamaRunner`: a row's logits depend on its own tokens and its adapter only.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from contrib.errors import WrongModel
from node.errors_serving import ContextTooLong
from node.serving.engine.model import ModelShape, Site
from node.serving.engine.pool import Pool
from node.serving.engine.rows import ROWS, SLOTS, Opened, Runner, Work
from node.serving.engine.runner import default_dtype

UNSTATED_CONTEXT = 2048


@dataclass(slots=True)
class _Row:
    slot: int
    length: int = 0
    cache: Any = None


class FallbackRunner(Runner):
    """Runs any causal language model that transformers knows; see `LlamaRunner` for the methods."""

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
        use_kernels: bool = True,  # there are none for these families
    ) -> None:
        """Load from a local folder, safetensors only, no code of the model's own.

        Raises:
            WrongModel: transformers can't load it.
        """
        from transformers import AutoModelForCausalLM

        self.device: Final = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype: Final = dtype or default_dtype(folder, self.device)
        options = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
        try:
            self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=self.dtype, **options)
        except (OSError, ValueError, KeyError, ImportError, SafetensorError) as e:
            cause = (str(e).strip() or type(e).__name__).splitlines()[0]
            raise WrongModel(f"couldn't load the model in {folder}: {cause}") from e
        self._model.to(self.device).eval()
        config = self._model.config.get_text_config()
        most = int(getattr(config, "max_position_embeddings", 0) or UNSTATED_CONTEXT)
        self.context: Final = min(most, context or most)
        self.vocabulary: Final = int(config.vocab_size)
        self.kernels: Final = "transformers"
        head = self._model.get_output_embeddings()
        linears = {p: m for p, m in self._model.named_modules() if isinstance(m, nn.Linear) and m is not head}
        self.shape: Final = ModelShape(sites=tuple(_site(path, linears[path]) for path in sorted(linears)), base=base)
        super().__init__(Pool(self.shape, slots=slots, device=self.device, dtype=self.dtype), rows)
        self._slot = 0  # of the row that runs
        for path, module in linears.items():
            module.register_forward_hook(self._hook(path))
        takes = inspect.signature(self._model.forward).parameters
        self._keep = "logits_to_keep" in takes

    def open(self, ids: Sequence[int], slot: int, version: str) -> Opened:
        """Take a row for a prompt. Raises MemoryError: all are taken; ContextTooLong: the prompt does not fit."""
        self._check(len(ids))
        return Opened(row=self._take(_Row(slot)), cached=0)

    def close(self, row: int, keep: bool) -> None:
        """Free a row."""
        self._leave(row)

    def step(self, work: Sequence[Work]) -> list[Tensor | None]:
        """Read every row's tokens, one row after another; see `LlamaRunner.step`."""
        for item in work:
            self._check(self._rows[item.row].length + len(item.ids))
        with torch.inference_mode():
            return [self._run(self._rows[item.row], item) for item in work]

    def _run(self, row: _Row, item: Work) -> Tensor | None:
        self._slot = row.slot
        keep = {"logits_to_keep": 1} if self._keep and item.want != "all" else {}
        tokens = torch.tensor([list(item.ids)], device=self.device)
        model = self._model.base_model if item.want == "hidden" else self._model
        more = {} if item.want == "hidden" else keep
        out = model(input_ids=tokens, past_key_values=row.cache, use_cache=True, **more)
        row.cache, row.length = out.past_key_values, row.length + len(item.ids)
        if item.want == "none":
            return None
        if item.want == "hidden":
            return out.last_hidden_state[0].float()  # type: ignore[no-any-return]
        logits: Tensor = out.logits[0].float()
        return logits if item.want == "all" else logits[-1:]

    def _hook(self, path: str) -> Any:
        def add(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            pair = self._pool.pair(self._slot, path) if self._slot else None
            if pair is None:
                return output
            added = (inputs[0].float() @ pair.a[0].float().T) @ pair.b[0].float()
            return (output.float() + added).to(output.dtype)

        return add

    def _check(self, length: int) -> None:
        if length > self.context:
            raise ContextTooLong(
                f"couldn't answer: the model reads at most {self.context} tokens, not {length}", limit=self.context
            )


def _site(path: str, module: nn.Linear) -> Site:
    return Site(name=path, parts=(path,), width=module.in_features, outs=(module.out_features,), layers=1)
