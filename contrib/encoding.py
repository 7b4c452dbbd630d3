"""Rows into token ids with a loss mask: what training, Fisher and evaluation feed to the model.

Knows a tokenizer only as the few functions in `Codec`; no torch, no store, no randomness. Invariants: in pairs and
chats exactly the answers (with the token that ends them) carry loss; in texts every token does; no sequence is longer
than `length`; an answer is never cut away entirely; the same rows and tokenizer give the same ids.

Texts are joined, an end token after each, and cut into blocks of `length` (the last block may be shorter). Pairs and
chats stay single: `batch` pads them to the longest of the batch, and `length` cuts their beginning first.

A chat goes through the model's chat template. Without one the plain template is used, in training and in serving alike:

    system: Be brief.
    user: Hello
    assistant: Hi there<eos>
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from contrib.errors import TokenizerUnfit
from contrib.row import Message, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turns: TypeAlias = Sequence[Mapping[str, str]]  # [{"role": ..., "content": ...}, ...]

IGNORED: Final = -100  # the label that torch's cross entropy leaves out
MIN_LENGTH: Final = 8
_CONTEXT_SHARE: Final = 4  # a long answer leaves a quarter of the length to what stands before it


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """One sequence; `loss[i]` says whether the prediction of `ids[i]` counts. The first token is never predicted."""

    ids: tuple[int, ...]
    loss: tuple[bool, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Arrays of one batch, padded on the right."""

    ids: NDArray[np.int64]  # [rows, longest]
    labels: NDArray[np.int64]  # [rows, longest], IGNORED where there is no loss
    mask: NDArray[np.int64]  # [rows, longest], 1 on tokens, 0 on padding


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """What encoding needs of a tokenizer; `codec_of` makes it from a transformers tokenizer."""

    tokens: Callable[[str], Sequence[int]]  # no special token is added; those in the text are recognised
    start: tuple[int, ...]  # what the tokenizer puts before every sequence: its begin token, or nothing
    eos: int
    eos_text: str
    pad: int
    render: Callable[[Turns, bool], str] | None  # the chat template: turns, whether to open an answer


def codec_of(tokenizer: PreTrainedTokenizerBase) -> Codec:
    """The codec of a transformers tokenizer.

    Raises:
        TokenizerUnfit: it has no end token, so an answer could not end.
    """
    if tokenizer.eos_token_id is None:
        raise TokenizerUnfit("couldn't use tokenizer: it names no end-of-sequence token")

    def tokens(text: str) -> Sequence[int]:
        ids: Sequence[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def render(turns: Turns, opens: bool) -> str:
        from jinja2 import TemplateError

        try:
            return str(tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=opens))
        except TemplateError as e:  # many templates refuse a system role or two turns of one side
            raise TokenizerUnfit(f"couldn't write chat: the model's chat template refuses it ({e})") from None

    pad, bos = tokenizer.pad_token_id, tokenizer.bos_token_id
    begins = bos is not None and list(tokenizer("")["input_ids"][:1]) == [bos]
    return Codec(
        tokens=tokens,
        start=(int(bos),) if begins else (),
        eos=int(tokenizer.eos_token_id),
        eos_text=str(tokenizer.eos_token),
        pad=int(tokenizer.eos_token_id if pad is None else pad),
        render=render if tokenizer.chat_template else None,
    )


def encode(rows: Iterable[Row], codec: Codec, *, length: int) -> Iterator[Encoded]:
    """Yield the sequences of `rows`: blocks of joined texts, one sequence for each pair or chat.

    Rows without an answer are left out. Lazy, so that a caller who needs few sequences encodes few rows.

    Args:
        rows: in the order in which texts are to be joined.
        codec: the tokenizer.
        length: the most tokens in a sequence, at least 8.
    """
    if length < MIN_LENGTH:
        raise ValueError(f"couldn't encode rows: length {length} is under {MIN_LENGTH}")
    waiting: list[int] = []
    for row in rows:
        if row.kind != "text":
            if (single := encode_one(row, codec, length=length)) is not None:
                yield single
            continue
        waiting += [*codec.start, *codec.tokens(row.text), codec.eos]
        while len(waiting) >= length:
            yield _all_loss(waiting[:length])
            del waiting[:length]
    if len(waiting) > 1:
        yield _all_loss(waiting)


def encode_one(row: Row, codec: Codec, *, length: int) -> Encoded | None:
    """One row as one sequence, cut to `length`; None when nothing in it could carry loss."""
    if row.kind == "text":
        whole = _all_loss([*codec.start, *codec.tokens(row.text), codec.eos][:length])
        return whole if len(whole.ids) > 1 else None
    pieces = _pair(row, codec) if row.kind == "pair" else _chat(row.messages, codec)
    ids, loss = list[int](), list[bool]()
    for tokens, counts in pieces:
        ids += tokens
        loss += [counts] * len(tokens)
    if True not in loss:
        return None
    if loss[0]:  # an empty prompt: the end token of "the document before" is the context of the first answer token
        ids, loss = [codec.eos, *ids], [False, *loss]
    return _cut(ids, loss, length)


def chat_prompt(turns: Sequence[Message], codec: Codec) -> str:
    """The text after which the model answers these turns: the same in training and in serving."""
    return _rendered(turns, codec, opens=True)


def batch(sequences: Sequence[Encoded], *, pad: int) -> Batch:
    """Pad sequences on the right to the longest one."""
    longest = max(len(s.ids) for s in sequences)
    ids = np.full((len(sequences), longest), pad, dtype=np.int64)
    labels = np.full_like(ids, IGNORED)
    mask = np.zeros_like(ids)
    for i, sequence in enumerate(sequences):
        n = len(sequence.ids)
        ids[i, :n] = sequence.ids
        labels[i, :n] = np.where(sequence.loss, sequence.ids, IGNORED)
        mask[i, :n] = 1
    return Batch(ids=ids, labels=labels, mask=mask)


def _all_loss(ids: Sequence[int]) -> Encoded:
    return Encoded(ids=tuple(ids), loss=(True,) * len(ids))


def _pair(row: Row, codec: Codec) -> list[tuple[Sequence[int], bool]]:
    if not row.completion:
        return []
    return [([*codec.start, *codec.tokens(row.prompt)], False), ([*codec.tokens(row.completion), codec.eos], True)]


def _chat(messages: Sequence[Message], codec: Codec) -> list[tuple[Sequence[int], bool]]:
    """Pieces of the rendered chat; each is tokenized by itself, so no token straddles an answer's border.

    The borders are lengths of rendered prefixes. A template that renders earlier turns differently once others follow
    (some drop old reasoning) leaves those answers without loss; the last answer must be found. An opening line of the
    assistant answers nothing: it is context.
    """
    last = max(i for i, m in enumerate(messages) if m.role == "assistant")
    whole = _rendered(messages[: last + 1], codec, opens=False)
    pieces: list[tuple[Sequence[int], bool]] = [] if codec.render else [(codec.start, False)]
    done = 0
    for i, message in enumerate(messages[: last + 1]):
        if i == 0 or message.role != "assistant" or not message.content.strip():
            continue
        before = _rendered(messages[:i], codec, opens=True)
        after = _rendered(messages[: i + 1], codec, opens=False)
        if not (whole.startswith(after) and after.startswith(before) and len(before) >= done):
            if i == last:
                raise TokenizerUnfit(
                    "couldn't mask chat: the chat template does not put the answer after its own prompt"
                )
            continue
        end = _end_of_answer(after, len(before), codec.eos_text)
        pieces += [(codec.tokens(whole[done : len(before)]), False), (codec.tokens(whole[len(before) : end]), True)]
        done = end
    return pieces


def _end_of_answer(text: str, start: int, eos_text: str) -> int:
    """Where the answer ends: after its end token; what the template adds behind it is not the model's to say."""
    found = text.rfind(eos_text, start)
    return len(text) if found < 0 else found + len(eos_text)


def _rendered(messages: Sequence[Message], codec: Codec, *, opens: bool) -> str:
    if codec.render is not None:
        return codec.render([{"role": m.role, "content": m.content} for m in messages], opens)
    end = codec.eos_text
    lines = [f"{m.role}: {m.content}{end if m.role == 'assistant' else ''}\n" for m in messages]
    return "".join(lines) + ("assistant: " if opens else "")


def _cut(ids: list[int], loss: list[bool], length: int) -> Encoded:
    """At most `length` tokens: the beginning goes first, then the end of an answer that is too long by itself."""
    if len(ids) > length:
        end = len(loss) - loss[::-1].index(True)
        start = end
        while start and loss[start - 1]:
            start -= 1
        begin = max(0, min(end - length, start - length // _CONTEXT_SHARE))
        ids, loss = ids[begin : begin + length], loss[begin : begin + length]
        loss[0] = False  # its context was cut away
    return Encoded(ids=tuple(ids), loss=tuple(loss))
