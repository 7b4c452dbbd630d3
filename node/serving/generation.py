"""A base model with one swappable adapter, and the loop that draws tokens from it. Runs in the engine process only.

Plain transformers and PEFT: one request at a time, key-value cache, prompt read in chunks so that a cancel is noticed.
It knows no names of versions and no JSON: `node.serving.engine` does.

Invariant: the same prompt, adapter vector, sampling and seed give the same tokens on one machine; the bare base runs with
the adapter switched off, so nothing of an earlier request is left in it.
"""

from __future__ import annotations

import copy
import functools
import inspect
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from contrib.adapters import AdapterSpec, Vector, attach, load_b
from contrib.encoding import chat_prompt, codec_of
from contrib.row import Message
from node.errors import ContextTooLong, JobRefused
from node.ports import Chat, Piece, Prompt, Sampling, Tokens, Usage
from node.serving.decoding import Detokenizer, StopFilter

PREFILL_CHUNK = 256  # tokens read between two looks at the cancel flag
DEFAULT_TOKENS = 1024  # answer length when the request names none and the context leaves room
GREEDY_BELOW = 1e-4  # temperatures under this are greedy: dividing by them would only overflow


class Cancelled(Exception):
    """The request was cancelled."""


class TextModel:
    """A base model, its tokenizer, and room for one adapter vector at a time."""

    def __init__(self, folder: Path, spec: AdapterSpec) -> None:
        """Load from a local folder, safetensors only; on the GPU in bfloat16 when there is one, else float32."""
        cuda = torch.cuda.is_available()
        self.device = torch.device("cuda" if cuda else "cpu")
        dtype = torch.bfloat16 if cuda and torch.cuda.is_bf16_supported() else torch.float32
        offline = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, **offline)
            bare: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True, **offline)
        except (OSError, ValueError, KeyError, ImportError, SafetensorError) as e:
            cause = (str(e).strip() or type(e).__name__).splitlines()[0]
            raise JobRefused(f"couldn't load the model in {folder}: {cause}", reason="wrong-model") from e
        self._codec = codec_of(self._tokenizer)
        self._peft: Any = attach(bare, spec).to(self.device).eval()
        self._forward: Any = self._peft.get_base_model()
        self._vector: Vector | None = None
        config = self._forward.config.get_text_config()
        self.context = int(getattr(config, "max_position_embeddings", 0) or 2048)
        self._vocabulary = int(config.vocab_size)
        takes = inspect.signature(self._forward.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        self._ends = _end_tokens(self._forward, self._tokenizer)
        self._decode = functools.partial(
            self._tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, a conversation (by the model's own chat template) or given ids.

        Raises:
            JobRefused: messages that the template refuses, or ids outside the vocabulary.
        """
        match prompt:
            case str():
                ids = self._tokenizer(prompt)["input_ids"]
            case Tokens():
                ids = list(prompt.ids)
            case Chat():
                ids = self._codec.tokens(self._conversation(prompt))
        if not ids:
            ids = [self._codec.eos if self._tokenizer.bos_token_id is None else self._tokenizer.bos_token_id]
        if not all(type(token) is int and 0 <= token < self._vocabulary for token in ids):
            raise JobRefused("couldn't read prompt: it has token ids that the model does not know", reason="bad_tokens")
        return list(ids)

    def _conversation(self, chat: Chat) -> str:
        """The text that opens an answer, by the rule that training used."""
        turns = [Message(role=turn["role"], content=turn["content"]) for turn in chat.messages]
        try:
            return chat_prompt(turns, self._codec)
        except TemplateError as e:
            raise JobRefused(f"couldn't read messages: the chat template says: {e}", reason="bad_messages") from e

    def generate(
        self, prompt: Prompt, vector: Vector | None, sampling: Sampling, cancelled: Callable[[], bool]
    ) -> Iterator[Piece | Usage]:
        """Yield the pieces of each answer in turn, then the usage.

        Raises:
            ContextTooLong: prompt and answer do not fit.
            JobRefused: see `encode`; also when the adapter gives numbers that are not finite.
            BadAdapter: the vector does not fit the model.
            Cancelled: `cancelled()` became true.
        """
        ids = self.encode(prompt)
        most = self._room(len(ids), sampling.max_tokens)
        seed = secrets.randbits(48) if sampling.seed is None else sampling.seed
        drawn = 0
        if vector is not None and vector is not self._vector:
            load_b(self._peft, vector)
            self._vector = vector
        with torch.inference_mode(), self._switched(vector is not None):
            cache, logits = self._read(ids, cancelled)
            for index in range(sampling.n):
                mine = cache if index == sampling.n - 1 else copy.deepcopy(cache)
                generator = torch.Generator(self.device).manual_seed((seed + index) % 2**63)
                for piece, tokens in self._answer(mine, logits, most, sampling, generator, cancelled):
                    drawn += tokens
                    if piece.text or piece.finish:
                        yield Piece(text=piece.text, index=index, finish=piece.finish)
        yield Usage(prompt_tokens=len(ids), completion_tokens=drawn)

    def _room(self, prompt: int, asked: int | None) -> int:
        if asked is None:
            asked = max(1, min(DEFAULT_TOKENS, self.context - prompt))
        if prompt + asked > self.context:
            message = (
                f"couldn't answer: the model reads at most {self.context} tokens, "
                f"the prompt has {prompt} and the answer may have {asked}"
            )
            raise ContextTooLong(message, limit=self.context)
        return asked

    def _switched(self, on: bool) -> Any:
        return torch.no_grad() if on else self._peft.disable_adapter()

    def _read(self, ids: list[int], cancelled: Callable[[], bool]) -> tuple[Any, torch.Tensor]:
        """Run the prompt; returns the cache and the logits [vocabulary] of its last position."""
        cache, logits = None, torch.empty(0)
        for at in range(0, len(ids), PREFILL_CHUNK):
            if cancelled():
                raise Cancelled
            cache, logits = self._step(ids[at : at + PREFILL_CHUNK], cache)
        return cache, logits

    def _step(self, ids: Sequence[int], cache: Any) -> tuple[Any, torch.Tensor]:
        tokens = torch.tensor([list(ids)], device=self.device)  # [1, length]
        out = self._forward(input_ids=tokens, past_key_values=cache, use_cache=True, **self._last_only)
        logits: torch.Tensor = out.logits[0, -1].float()
        if not bool(torch.isfinite(logits).all()):
            raise JobRefused("couldn't answer: the model gives numbers that are not finite", reason="not_finite")
        return out.past_key_values, logits

    def _answer(
        self,
        cache: Any,
        logits: torch.Tensor,
        most: int,
        sampling: Sampling,
        generator: torch.Generator,
        cancelled: Callable[[], bool],
    ) -> Iterator[tuple[Piece, int]]:
        """Draw one answer; yields (piece, tokens drawn for it), the last piece with its reason to end."""
        words, stops = Detokenizer(self._decode), StopFilter(sampling.stop)
        for step in range(most):
            if cancelled():
                raise Cancelled
            token = draw(logits, sampling, generator)
            if token in self._ends:
                yield Piece(text=stops.push(words.finish()) + stops.finish(), finish="stop"), 1
                return
            text = stops.push(words.push(token))
            if stops.stopped:
                yield Piece(text=text, finish="stop"), 1
                return
            yield Piece(text=text), 1
            if step + 1 < most:
                cache, logits = self._step([token], cache)
        text = stops.push(words.finish()) + stops.finish()
        yield Piece(text=text, finish="stop" if stops.stopped else "length"), 0


def draw(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """One token id from `logits` [vocabulary]: greedy, or by temperature from the smallest set that holds `top_p`."""
    if sampling.temperature < GREEDY_BELOW:
        return int(logits.argmax())
    chances = torch.softmax(logits / sampling.temperature, dim=-1)
    if sampling.top_p >= 1:
        return int(torch.multinomial(chances, 1, generator=generator))
    chances, order = chances.sort(descending=True, stable=True)
    outside = chances.cumsum(-1) - chances >= sampling.top_p  # what comes before already holds top_p
    outside[0] = False
    return int(order[torch.multinomial(chances.masked_fill(outside, 0.0), 1, generator=generator)])


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Ids that end an answer: those of the generation settings and the tokenizer's own."""
    named = model.generation_config.eos_token_id if model.generation_config is not None else None
    found = [*named] if isinstance(named, list | tuple) else [named]
    return frozenset(token for token in (*found, tokenizer.eos_token_id) if token is not None)
