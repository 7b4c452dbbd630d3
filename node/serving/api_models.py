"""Bodies of the OpenAI-style API: what a request may say and how answers look.

pydantic at the text edge only; `node.serving.api` turns requests into the values of `node.ports`. A field that would change the
answer and that we do not have is refused unless it has its neutral value; fields that only label a request are taken and
ignored; an unknown field is refused by name, so that a typing mistake never passes for a setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from node.ports import Chat, Piece, Prompt, Sampling, ServedModel, Tokens, Usage

MOST_PROMPTS, MOST_ANSWERS, MOST_STOPS = 16, 4, 8
MOST_TOKENS = 1 << 20
NEUTRAL: Mapping[str, tuple[Any, ...]] = {  # what we do not have, and the values that ask for nothing
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
LABELS = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")


def _unicode(text: str) -> str:
    """JSON can spell half a surrogate pair, which no encoding of text can carry."""
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("half of a surrogate pair is not a character")
    return text


Text: TypeAlias = Annotated[str, AfterValidator(_unicode)]
TokenIds: TypeAlias = Annotated[list[Annotated[int, Field(ge=0, strict=True)]], Field(min_length=1)]
Stop: TypeAlias = Annotated[Text, Field(min_length=1, max_length=1024)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StreamOptions(_Body):
    """How a stream ends."""

    include_usage: bool = False
    include_obfuscation: bool = False  # padding against traffic analysis: a label for us


class _Request(_Body):
    model: Text = Field(min_length=1, max_length=256)
    max_tokens: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    n: int | None = Field(default=None, ge=1, le=MOST_ANSWERS)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, body: Any) -> Any:
        """Drop labels and neutral values; what is left and unknown is then refused by name."""
        if not isinstance(body, dict):
            return body
        return {name: value for name, value in body.items() if not _is_neutral(name, value)}

    @model_validator(mode="after")
    def _options_need_stream(self) -> _Request:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options are only allowed when stream is true")
        return self

    @property
    def include_usage(self) -> bool:
        """True when the stream is to end with a chunk that counts tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def _sampling(self, max_tokens: int | None) -> Sampling:
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
            stop=tuple(stop),
            n=self.n or 1,
        )


class CompletionRequest(_Request):
    """Body of POST /v1/completions."""

    prompt: (
        Text
        | TokenIds
        | Annotated[list[Text], Field(min_length=1, max_length=MOST_PROMPTS)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MOST_PROMPTS)]
    )
    best_of: int | None = Field(default=None, ge=1, le=MOST_ANSWERS)

    @model_validator(mode="after")
    def _best_is_all(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of other than n is not supported")
        return self

    def prompts(self) -> list[Prompt]:
        """The prompts, each answered by itself."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [_tokens(self.prompt)]
        return [prompt if isinstance(prompt, str) else _tokens(prompt) for prompt in self.prompt]

    def sampling(self) -> Sampling:
        """How to draw: 16 tokens unless the request says otherwise, as OpenAI does."""
        return self._sampling(16 if self.max_tokens is None else self.max_tokens)


class TextPart(_Body):
    """A piece of a message."""

    type: Literal["text"]
    text: Text


class MessageBody(_Body):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1)]
    name: str | None = None

    @field_validator("content")
    @classmethod
    def _joined(cls, content: str | list[TextPart]) -> str:
        return content if isinstance(content, str) else "".join(part.text for part in content)

    def turn(self) -> dict[str, str]:
        """The form chat templates know; a developer's message is a system message."""
        return {"role": "system" if self.role == "developer" else self.role, "content": str(self.content)}


class ChatRequest(_Request):
    """Body of POST /v1/chat/completions."""

    messages: list[MessageBody] = Field(min_length=1, max_length=1024)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MOST_TOKENS)

    def prompts(self) -> list[Prompt]:
        """The conversation."""
        return [Chat(messages=tuple(message.turn() for message in self.messages))]

    def sampling(self) -> Sampling:
        """How to draw; without a limit the engine's own applies."""
        return self._sampling(self.max_completion_tokens or self.max_tokens)


def _is_neutral(name: str, value: Any) -> bool:
    return name in LABELS or (name in NEUTRAL and (value is None or value in NEUTRAL[name]))


def _tokens(ids: Any) -> Tokens:
    return Tokens(ids=tuple(ids))


# -- answers ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer to one request, in OpenAI's shapes: whole, or as the chunks of a stream."""

    number: str
    created: int
    model: str
    fingerprint: str
    chat: bool

    def whole(self, texts: Mapping[int, str], finishes: Mapping[int, str], usage: Usage) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        choices = []
        for index in sorted(finishes):
            said = {"message": {"role": "assistant", "content": texts[index], "refusal": None}}
            choices.append(self._choice(index, finishes[index], **(said if self.chat else {"text": texts[index]})))
        return {**self._head("chat.completion"), "choices": choices, "usage": usage_body(usage)}

    def opening(self, index: int) -> dict[str, Any]:
        """The first chunk of a chat answer."""
        return self._chunk(self._choice(index, None, delta={"role": "assistant", "content": "", "refusal": None}))

    def chunk(self, piece: Piece) -> list[dict[str, Any]]:
        """The chunks of one piece; a chat answer says why it ended in a chunk of its own."""
        if not self.chat:
            return [self._chunk(self._choice(piece.index, piece.finish, text=piece.text))]
        chunks = [self._chunk(self._choice(piece.index, None, delta={"content": piece.text}))] if piece.text else []
        return chunks + ([self._chunk(self._choice(piece.index, piece.finish, delta={}))] if piece.finish else [])

    def ending(self, usage: Usage) -> dict[str, Any]:
        """The chunk that counts tokens."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage_body(usage)}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.number,
            "object": kind if self.chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    @staticmethod
    def _choice(index: int, finish: str | None, **said: Any) -> dict[str, Any]:
        return {"index": index, **said, "logprobs": None, "finish_reason": finish}


def model_body(model: ServedModel, *, owner: str, base: str) -> dict[str, Any]:
    """One model of /v1/models; `root` is the digest it is served under, `parent` the base it adapts."""
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": owner,
        "root": model.digest,
        "parent": None if model.vector is None else base,
    }


def usage_body(usage: Usage) -> dict[str, int]:
    """Token counts."""
    total = usage.prompt_tokens + usage.completion_tokens
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": total,
    }


def error_body(message: str, *, kind: str, code: str | None, param: str | None = None) -> dict[str, Any]:
    """OpenAI's error envelope."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
