"""Answers of the OpenAI-style API: their shapes as the document describes them, and how they are built from pieces.

The pydantic models say what clients may rely on (they make the OpenAPI document, and tests hold every answer against them);
the answers themselves are built as plain dicts, for a stream makes one per token. Knows no engine and no HTTP.

Invariant: every answer names its version and the ledger head it was given under, in `system_fingerprint` and `fishernet`.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import BaseModel

from node.ports import Piece, Route, ServedModel, TokenScore, Usage

LEAST: Final = -9999.0  # what OpenAI's API gives for what cannot be drawn; JSON has no infinity


# -- shapes ----------------------------------------------------------------------------------------------------------
class RouteBody(BaseModel):
    """Why "auto" went to this model; `scores` are the cosines of all experts."""

    model: str
    reason: str
    why: str
    scores: dict[str, float]
    prompt_tokens: int


class Origin(BaseModel):
    """What an answer came from, so that it can be looked up in the ledger."""

    model: str
    release: str
    head: str
    vector: str | None = None
    asked: str
    route: RouteBody | None = None


class PromptDetails(BaseModel):
    """Of the prompt's tokens, those that had been read before."""

    cached_tokens: int


class UsageBody(BaseModel):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class CompletionScores(BaseModel):
    """Scores of each token in nats; the first of a prompt has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One answer. `stop_reason` "deadline": it was cut by the request's timeout."""

    index: int
    text: str
    logprobs: CompletionScores | None
    finish_reason: str | None
    stop_reason: str | None = None


class Completion(BaseModel):
    """Answer of POST /v1/completions."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    fishernet: Origin
    choices: list[CompletionChoice]
    usage: UsageBody


class TopScore(BaseModel):
    """A token that could have stood there."""

    token: str
    logprob: float
    bytes: list[int]


class ChatScore(TopScore):
    """A token of the answer."""

    top_logprobs: list[TopScore]


class ChatScores(BaseModel):
    """Scores of each token in nats."""

    content: list[ChatScore]
    refusal: None


class Message(BaseModel):
    """What was said."""

    role: str
    content: str
    refusal: None


class ChatChoice(BaseModel):
    """One answer. `stop_reason` "deadline": it was cut by the request's timeout."""

    index: int
    message: Message
    logprobs: ChatScores | None
    finish_reason: str
    stop_reason: str | None = None


class ChatCompletion(BaseModel):
    """Answer of POST /v1/chat/completions."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    fishernet: Origin
    choices: list[ChatChoice]
    usage: UsageBody


class ModelBody(BaseModel):
    """One version that can be asked for; `root` is the digest it is served under, `parent` the base it adapts."""

    id: str
    object: str
    created: int
    owned_by: str
    root: str
    parent: str | None


class ModelList(BaseModel):
    """Answer of GET /v1/models."""

    object: str
    data: list[ModelBody]


class EmbeddingBody(BaseModel):
    """One vector [hidden], as numbers or as base64 of little-endian float32."""

    object: str
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Token counts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """Answer of POST /v1/embeddings."""

    object: str
    data: list[EmbeddingBody]
    model: str
    usage: EmbeddingUsage


class Health(BaseModel):
    """Answer of GET /health: this process answers."""

    status: str
    node: str


class Readiness(BaseModel):
    """Answer of GET /ready; `missing` names what a request would have to wait for."""

    status: str
    node: str
    release: str | None
    head: str
    ready: dict[str, bool]
    missing: list[str]


# -- building --------------------------------------------------------------------------------------------------------
@dataclass(slots=True, kw_only=True)
class _Place:
    """How far the text of one answer has come, in characters."""

    characters: int = 0
    decoder: codecs.IncrementalDecoder = field(default_factory=codecs.getincrementaldecoder("utf-8"))

    def __post_init__(self) -> None:
        self.decoder.errors = "replace"

    def step(self, raw: bytes) -> int:
        """Where a token begins; the next one begins behind it."""
        begin = self.characters
        self.characters += len(self.decoder.decode(raw))
        return begin


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer to one request, in OpenAI's shapes: whole, or as the chunks of a stream."""

    number: str
    created: int
    model: str
    fingerprint: str
    chat: bool
    origin: Mapping[str, Any]
    scored: bool = False
    _places: dict[int, _Place] = field(default_factory=dict)

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        mine: dict[int, list[Piece]] = {}
        for piece in pieces:
            mine.setdefault(piece.index, []).append(piece)
        choices = []
        for index, parts in sorted(mine.items()):
            text = "".join(part.text for part in parts)
            finish = next((part.finish for part in reversed(parts) if part.finish), "length")
            tokens = [token for part in parts for token in part.tokens]
            said = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
            choices.append(self._choice(index, finish, tokens if self.scored else None, **said))
        return {**self._head("chat.completion"), **self._origin(), "choices": choices, "usage": usage_body(usage)}

    def opening(self, index: int) -> dict[str, Any]:
        """The first chunk of a chat answer."""
        return self._chunk(self._choice(index, None, None, delta={"role": "assistant", "content": "", "refusal": None}))

    def chunk(self, piece: Piece) -> list[dict[str, Any]]:
        """The chunks of one piece; a chat answer says why it ended in a chunk of its own."""
        tokens = piece.tokens if self.scored and piece.tokens else None
        if not self.chat:
            return [self._chunk(self._choice(piece.index, piece.finish, tokens, text=piece.text))]
        chunks = []
        if piece.text or tokens:
            chunks.append(self._chunk(self._choice(piece.index, None, tokens, delta={"content": piece.text})))
        if piece.finish:
            chunks.append(self._chunk(self._choice(piece.index, piece.finish, None, delta={})))
        return chunks

    def ending(self, usage: Usage) -> dict[str, Any]:
        """The chunk that counts tokens."""
        head = {**self._head("chat.completion.chunk"), **self._origin()}
        return {**head, "choices": [], "usage": usage_body(usage)}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _origin(self) -> dict[str, Any]:
        return {"fishernet": dict(self.origin)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.number,
            "object": kind if self.chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def _choice(
        self, index: int, finish: str | None, tokens: Sequence[TokenScore] | None, **said: Any
    ) -> dict[str, Any]:
        cut = {"stop_reason": "deadline"} if finish == "deadline" else {}  # OpenAI's clients know no such finish_reason
        scores = None if tokens is None else self._scores(index, tokens)
        return {"index": index, **said, "logprobs": scores, "finish_reason": "length" if cut else finish, **cut}

    def _scores(self, index: int, tokens: Sequence[TokenScore]) -> dict[str, Any]:
        if self.chat:
            return {"content": [_chat_score(token) for token in tokens], "refusal": None}
        place = self._places.setdefault(index, _Place())
        return {
            "tokens": [_label(token.raw) for token in tokens],
            "token_logprobs": [_finite(token.logprob) for token in tokens],
            "top_logprobs": [_alternatives(token) for token in tokens],
            "text_offset": [place.step(token.raw) for token in tokens],
        }


def _label(raw: bytes) -> str:
    """A token's text, or its bytes in OpenAI's spelling when it ends inside a character."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _finite(score: float | None) -> float | None:
    return None if score is None else max(score, LEAST)


def _alternatives(token: TokenScore) -> dict[str, float] | None:
    """The likeliest tokens and the one that stands there, by text; of two with one text the likelier counts."""
    if token.logprob is None:
        return None
    found: dict[str, float] = {}
    for raw, score in [*((raw, score) for _, raw, score in token.top), (token.raw, token.logprob)]:
        found[_label(raw)] = max(score, found.get(_label(raw), LEAST), LEAST)
    return found


def _chat_score(token: TokenScore) -> dict[str, Any]:
    top = [{"token": text, "logprob": max(score, LEAST), "bytes": list(raw)} for text, raw, score in token.top]
    score = LEAST if token.logprob is None else max(token.logprob, LEAST)
    return {"token": token.text, "logprob": score, "bytes": list(token.raw), "top_logprobs": top}


def route_body(route: Route) -> dict[str, Any]:
    """Why "auto" went where it did."""
    return {
        "model": route.model,
        "reason": route.reason,
        "why": route.why,
        "scores": dict(route.scores),
        "prompt_tokens": route.prompt_tokens,
    }


def model_body(model: ServedModel, *, owner: str, base: str) -> dict[str, Any]:
    """One model of /v1/models."""
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": model.owner or owner,
        "root": model.digest,
        "parent": None if model.vector is None and model.folder is None else base,
    }


def usage_body(usage: Usage) -> dict[str, Any]:
    """Token counts."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
