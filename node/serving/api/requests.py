"""Bodies of requests to the OpenAI-style API.

pydantic at the text edge only; they turn into the values of `node.ports`. What would change the answer and is not built here
is refused unless it has its neutral value; labels are taken and ignored; an unknown field is refused by name, so that a
typing mistake never passes for a setting. top_k, min_p, timeout and response_format on completions go beyond OpenAI's own.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from node.ports import Chat, Prompt, Sampling, Tokens

MOST_PROMPTS, MOST_ANSWERS, MOST_STOPS, MOST_SCORES = 16, 8, 8, 20
MOST_ROWS: Final = 64  # prompts times n
MOST_INPUTS: Final = 64  # texts to embed
MOST_TOKENS: Final = 1 << 20
MOST_SECONDS: Final = 3600
UNSUPPORTED: Final = "unsupported_value"


def _only(*values: Any) -> Any:
    """The type of a field that is not built here: these values ask for nothing, any other is refused."""

    def check(value: Any) -> Any:
        if any(type(value) is type(each) and value == each for each in values) or value is None:
            return value
        raise PydanticCustomError(UNSUPPORTED, "it is not supported here")

    return Annotated[Any, AfterValidator(check), WithJsonSchema({"enum": [*values, None]})]


def _fault(param: str, message: str) -> PydanticCustomError:
    """A fault of a whole request, with the field that it is laid to."""
    return PydanticCustomError("invalid", message, {"param": param})


def _unicode(text: str) -> str:
    """JSON can spell half a surrogate pair, which no encoding of text can carry."""
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("half of a surrogate pair is not a character")
    return text


def _whole(value: Any) -> Any:
    """JSON knows one kind of number: 3.0 is an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_WHOLE: Final = BeforeValidator(_whole)  # outside of the bounds, so that these stand in the document
Limit: TypeAlias = Annotated[int, Field(ge=1, le=MOST_TOKENS), _WHOLE]
Answers: TypeAlias = Annotated[int, Field(ge=1, le=MOST_ANSWERS), _WHOLE]
Alternatives: TypeAlias = Annotated[int, Field(ge=0, le=MOST_SCORES), _WHOLE]
TokenId: TypeAlias = Annotated[int, Field(ge=0, lt=1 << 31), _WHOLE]
Text: TypeAlias = Annotated[str, AfterValidator(_unicode)]
TokenIds: TypeAlias = Annotated[list[TokenId], Field(min_length=1)]
Texts: TypeAlias = (
    Text | TokenIds | Annotated[list[Text], Field(min_length=1)] | Annotated[list[TokenIds], Field(min_length=1)]
)
Stop: TypeAlias = Annotated[Text, Field(min_length=1, max_length=1024)]
Label: TypeAlias = Annotated[str | None, Field(default=None, description="A label; not used here.")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_Body):
    """How a stream ends."""

    include_usage: bool = False
    include_obfuscation: bool = False  # padding against traffic analysis: a label for us


class TextFormat(_Body):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(_Body):
    """A JSON object; ask for JSON in the prompt too, or the answer may be an empty one."""

    type: Literal["json_object"]


class JsonSchema(_Body):
    """A named JSON schema; always kept, strict or not."""

    name: str = Field(default="answer", max_length=64)
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(_Body):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


Format: TypeAlias = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class _Request(_Body):
    model: Text = Field(min_length=1, max_length=256)
    max_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS), _WHOLE] | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: Annotated[int, Field(ge=-1, le=MOST_TOKENS), _WHOLE] | None = Field(
        default=None, description="Draw from so many tokens; 0 or -1: all."
    )
    min_p: float | None = Field(
        default=None, ge=0, le=1, description="Leave out what is less likely than this part of the likeliest."
    )
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1), _WHOLE] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    n: Answers | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: Format | None = None
    timeout: float | None = Field(
        default=None, gt=0, le=MOST_SECONDS, description="Seconds after which the answer ends where it stands."
    )
    presence_penalty: _only(0, 0.0) = None  # type: ignore[valid-type]
    frequency_penalty: _only(0, 0.0) = None  # type: ignore[valid-type]
    logit_bias: _only({}) = None  # type: ignore[valid-type]
    user: Label
    metadata: dict[str, str] | None = Field(default=None, description="Labels; not used here.")
    store: bool | None = Field(default=None, description="A label; nothing is stored.")
    service_tier: Label
    safety_identifier: Label
    prompt_cache_key: Label

    @property
    def include_usage(self) -> bool:
        """True when the stream is to end with a chunk that counts tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    @model_validator(mode="after")
    def _options_need_stream(self) -> _Request:
        if self.stream_options is not None and not self.stream:
            raise _fault("stream_options", "it is only allowed when stream is true")
        return self

    def _json(self) -> str | None:
        """The schema that the answer must follow, "" for any object, None for text."""
        match self.response_format:
            case JsonSchemaFormat(json_schema=asked):
                return json.dumps(asked.schema_, separators=(",", ":"))
            case JsonObjectFormat():
                return ""
        return None

    def _sampling(self, max_tokens: int | None, logprobs: int | None, *, echo: bool = False) -> Sampling:
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(0, self.top_k or 0),
            min_p=self.min_p or 0.0,
            seed=self.seed,
            stop=tuple(stop),
            n=self.n or 1,
            logprobs=logprobs,
            echo=echo,
            json=self._json(),
        )


class CompletionRequest(_Request):
    """Body of POST /v1/completions."""

    prompt: Texts
    echo: bool | None = Field(default=None, description="The prompt comes first, with scores when logprobs is given.")
    logprobs: Alternatives | None = None
    best_of: Answers | None = Field(default=None, description="Only the value of n.")
    suffix: _only("") = None  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _fits(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise _fault("best_of", "another value than that of n is not supported")
        if self.max_tokens == 0 and not self.echo:
            raise _fault("max_tokens", "it is 1 or more unless echo is true")
        count = len(self.prompts())
        if count > MOST_PROMPTS or count * (self.n or 1) > MOST_ROWS:
            raise _fault("prompt", f"one request has at most {MOST_PROMPTS} prompts and {MOST_ROWS} answers")
        return self

    def prompts(self) -> list[Prompt]:
        """The prompts, each answered by itself."""
        return _prompts(self.prompt)

    def sampling(self) -> Sampling:
        """How to draw: 16 tokens unless the request says otherwise, as OpenAI does."""
        return self._sampling(16 if self.max_tokens is None else self.max_tokens, self.logprobs, echo=bool(self.echo))


class TextPart(_Body):
    """A piece of a message."""

    type: Literal["text"]
    text: Text


class MessageBody(_Body):
    """One turn of a conversation; an answer of this API may be sent back as it came."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1)]
    name: Text | None = Field(default=None, description="A label; not used here.")
    refusal: _only() = None  # type: ignore[valid-type]
    tool_calls: _only([]) = None  # type: ignore[valid-type]
    function_call: _only() = None  # type: ignore[valid-type]
    annotations: _only([]) = None  # type: ignore[valid-type]
    audio: _only() = None  # type: ignore[valid-type]

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
    max_tokens: Limit | None = None
    max_completion_tokens: Limit | None = None
    logprobs: bool | None = None
    top_logprobs: Alternatives | None = Field(default=None, description="Needs logprobs.")
    tools: _only([]) = None  # type: ignore[valid-type]
    tool_choice: _only("none", "auto") = None  # type: ignore[valid-type]
    functions: _only([]) = None  # type: ignore[valid-type]
    function_call: _only("none", "auto") = None  # type: ignore[valid-type]
    parallel_tool_calls: bool | None = Field(default=None, description="There are no tools here.")
    modalities: _only(["text"]) = None  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _scores_need_logprobs(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise _fault("top_logprobs", "it is only allowed when logprobs is true")
        return self

    def prompts(self) -> list[Prompt]:
        """The conversation."""
        return [Chat(messages=tuple(message.turn() for message in self.messages))]

    def sampling(self) -> Sampling:
        """How to draw; without a limit the engine's own applies."""
        return self._sampling(
            self.max_completion_tokens or self.max_tokens, (self.top_logprobs or 0) if self.logprobs else None
        )


class EmbeddingRequest(_Body):
    """Body of POST /v1/embeddings."""

    model: Text = Field(min_length=1, max_length=256)
    input: Texts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: _only() = None  # type: ignore[valid-type]
    user: Label

    @model_validator(mode="after")
    def _fits(self) -> EmbeddingRequest:
        if len(self.prompts()) > MOST_INPUTS:
            raise _fault("input", f"one request has at most {MOST_INPUTS} inputs")
        return self

    def prompts(self) -> list[Prompt]:
        """The inputs, each embedded by itself."""
        return _prompts(self.input)


def _prompts(given: Any) -> list[Prompt]:
    if isinstance(given, str):
        return [given]
    if isinstance(given[0], int):
        return [Tokens(ids=tuple(given))]
    return [each if isinstance(each, str) else Tokens(ids=tuple(each)) for each in given]
