"""The values of `node.ports` as fields of a job or an event line, both ways, between `node.serving.models` and the engine.

JSON only; knows no process and no model. The engine checks ranges here, because a job may come from anywhere.

Invariant: what is written is read back as an equal value.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from node.errors import JobRefused
from node.ports import Chat, Piece, Prompt, Sampling, ServedModel, Tokens, TokenScore, Usage

MOST_ANSWERS, MOST_SCORES = 8, 20


# -- jobs ------------------------------------------------------------------------------------------------------------
def version_fields(model: ServedModel) -> dict[str, Any]:
    """What the engine needs to read a version; of the bare base its digest only."""
    if model.vector is None and model.folder is None:
        return {"base": model.digest}
    place = {"vector": str(model.vector)} if model.vector is not None else {"folder": str(model.folder)}
    spec = {} if model.spec is None else {"spec": dict(model.spec)}
    return {**place, **spec, "digest": model.model, "base": model.base}


def prompt_fields(prompt: Prompt) -> dict[str, Any]:
    """A prompt."""
    match prompt:
        case str():
            return {"prompt": prompt}
        case Tokens():
            return {"prompt": list(prompt.ids)}
        case Chat():
            return {"messages": [dict(message) for message in prompt.messages]}


def parse_prompt(job: Mapping[str, Any]) -> Prompt:
    """Read `prompt_fields`. Raises JobRefused."""
    if isinstance(messages := job.get("messages"), list):
        return Chat(messages=tuple(messages))
    if isinstance(text := job.get("prompt"), str):
        return text
    if isinstance(text, list):
        return Tokens(ids=tuple(text))
    raise JobRefused("couldn't answer: prompt or messages are expected", reason="bad_job")


def sampling_fields(sampling: Sampling) -> dict[str, Any]:
    """How to draw."""
    return {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "seed": sampling.seed,
        "stop": list(sampling.stop),
        "n": sampling.n,
        "logprobs": sampling.logprobs,
        "echo": sampling.echo,
        "json": sampling.json,
    }


def parse_sampling(job: Mapping[str, Any]) -> Sampling:
    """Read `sampling_fields`; absent ones have their defaults. Raises JobRefused: a number is out of its range."""
    seed, most, scores, schema = (job.get(name) for name in ("seed", "max_tokens", "logprobs", "json"))
    sampling = Sampling(
        max_tokens=None if most is None else int(most),
        temperature=float(job.get("temperature", 0.0)),
        top_p=float(job.get("top_p", 1.0)),
        top_k=int(job.get("top_k", 0)),
        min_p=float(job.get("min_p", 0.0)),
        seed=None if seed is None else int(seed),
        stop=tuple(str(stop) for stop in job.get("stop") or ()),
        n=int(job.get("n", 1)),
        logprobs=None if scores is None else int(scores),
        echo=bool(job.get("echo", False)),
        json=None if schema is None else str(schema),
    )
    sound = (
        1 <= sampling.n <= MOST_ANSWERS
        and 0 <= sampling.temperature < float("inf")
        and 0 <= sampling.top_p <= 1
        and 0 <= sampling.min_p <= 1
        and sampling.top_k >= 0
        and (sampling.max_tokens is None or sampling.max_tokens >= (0 if sampling.echo else 1))
        and (sampling.logprobs is None or 0 <= sampling.logprobs <= MOST_SCORES)
    )
    if not sound:
        raise JobRefused("couldn't answer: a number of the request is out of its range", reason="bad_job")
    return sampling


# -- events ----------------------------------------------------------------------------------------------------------
def piece_fields(piece: Piece) -> dict[str, Any]:
    """Some text of an answer."""
    return {
        "index": piece.index,
        "text": piece.text,
        **({"finish_reason": piece.finish} if piece.finish else {}),
        **({"tokens": [_token_fields(token) for token in piece.tokens]} if piece.tokens else {}),
    }


def parse_piece(event: Mapping[str, Any]) -> Piece:
    """Read `piece_fields`."""
    tokens = tuple(_parse_token(token) for token in event.get("tokens", ()))
    return Piece(text=event["text"], index=event["index"], finish=event.get("finish_reason"), tokens=tokens)


def _token_fields(token: TokenScore) -> dict[str, Any]:
    return {
        "id": token.id,
        "text": token.text,
        "raw": base64.b64encode(token.raw).decode(),
        "logprob": token.logprob,
        "top": [[text, base64.b64encode(raw).decode(), score] for text, raw, score in token.top],
    }


def _parse_token(fields: Mapping[str, Any]) -> TokenScore:
    top = tuple((text, base64.b64decode(raw), score) for text, raw, score in fields["top"])
    raw = base64.b64decode(fields["raw"])
    return TokenScore(id=fields["id"], text=fields["text"], raw=raw, logprob=fields["logprob"], top=top)


def usage_fields(usage: Usage) -> dict[str, int]:
    """What a request has cost."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cached_tokens": usage.cached_tokens,
    }


def parse_usage(fields: Mapping[str, int]) -> Usage:
    """Read `usage_fields`."""
    return Usage(
        prompt_tokens=fields["prompt_tokens"],
        completion_tokens=fields["completion_tokens"],
        cached_tokens=fields["cached_tokens"],
    )


def vector_text(values: npt.NDArray[np.float32]) -> str:
    """A float32 vector as base64 of its little-endian bytes."""
    return base64.b64encode(values.astype("<f4").tobytes()).decode()


def parse_vectors(texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """Read vectors of one width: [texts, width]."""
    return np.stack([np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float32) for text in texts])
