"""JSON answers by grammar: which tokens may come next, for any JSON object or for a JSON schema.

llguidance parses what was drawn (Earley over lexemes) and says for every token of the vocabulary whether it may follow.
Compiling and every step are bounded in work, so no schema can hold the engine. Between tokens of the grammar at most a line
break with its indentation may stand: a model cannot fill its answer with blanks. Knows no request and no sampling.

Invariant: an answer that ends before its length limit parses as JSON and follows its schema; a schema with a keyword that
cannot be kept is refused, not ignored.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from threading import Lock
from typing import Any, Final

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from node.errors import JobRefused

MOST_SCHEMA: Final = 64 << 10  # bytes
MOST_DEPTH, MOST_PARTS = 64, 2000  # nesting of a schema; values in it, which its compiling time grows with
KEPT: Final = 32  # compiled schemas, and tokenizers, that are kept
BLANKS: Final = r"( |\n {0,24})?"
BAD_SCHEMA: Final = "bad_schema"
_LIMITS: Final = LLParserLimits(
    initial_lexer_fuel=1_000_000,  # some 20 ms
    step_lexer_fuel=200_000,  # some 15 ms
    step_max_items=20_000,
    max_lexer_states=20_000,
    max_grammar_size=100_000,
    verbose_errors=False,  # no part of an answer in messages
)


class Grammar:
    """Where one answer stands in its grammar."""

    __slots__ = ("_matcher", "_words")

    def __init__(self, matcher: LLMatcher, words: int) -> None:
        self._matcher = matcher
        self._words = words  # tokens that the grammar knows; what a model has beyond is never allowed

    @classmethod
    def for_json(cls, schema: str, tokenizer: Path, eos: Iterable[int]) -> Grammar:
        """The grammar of a JSON schema ("": any object) over a tokenizer.json; `eos` are the tokens that end an answer.

        The first one for a tokenizer takes some 0.2 s, for a schema some ms; the next ones copy it. Any thread may call it.

        Raises:
            JobRefused ("bad_schema"): too large, no JSON, not a schema, or with keywords that cannot be kept.
        """
        ends = tuple(sorted(eos))
        found = _COMPILED.get((schema, tokenizer, ends))
        if found is None:
            words = _WORDS.get((tokenizer, ends))
            if words is None:
                words = _WORDS.put((tokenizer, ends), LLTokenizer(str(tokenizer), eos_token=list(ends)))
            found = _COMPILED.put((schema, tokenizer, ends), cls(_compile(schema, words), words.vocab_size))
        return cls(found._matcher.deep_copy(), found._words)

    def mask(self, logits: torch.Tensor) -> None:
        """Set what may not come next in `logits` [vocabulary] to -inf, in place; all of them when nothing may."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():  # a bound was reached: the answer cannot go on
            bits = np.zeros_like(bits)
        known = min(self._words, len(logits))
        forbidden = torch.from_numpy(np.unpackbits(bits, bitorder="little")[:known] == 0)
        logits[:known].masked_fill_(forbidden.to(logits.device), -torch.inf)
        logits[known:] = -torch.inf

    def accept(self, token: int) -> None:
        """Go on behind `token`, which `mask` allowed."""
        self._matcher.consume_token(token)

    @property
    def finished(self) -> bool:
        """Whether nothing may follow any more but the end."""
        return bool(self._matcher.is_stopped())


class _Kept:
    """The values used last, by key."""

    def __init__(self) -> None:
        self._values: OrderedDict[Any, Any] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Any) -> Any:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: Any, value: Any) -> Any:
        with self._lock:
            self._values[key] = value
            while len(self._values) > KEPT:
                self._values.popitem(last=False)
        return value


_WORDS: Final = _Kept()
_COMPILED: Final = _Kept()


def checked(schema: str) -> Any:
    """A schema's JSON. Raises JobRefused when it is too large, too deep, or not an object."""
    if len(schema.encode()) > MOST_SCHEMA:
        raise _refused(f"it has more than {MOST_SCHEMA} bytes")
    try:
        value = json.loads(schema)
    except (ValueError, RecursionError):
        raise _refused("it is not JSON") from None
    if not isinstance(value, dict):
        raise _refused("it is not an object")
    depth, parts = _size(value)
    if depth > MOST_DEPTH or parts > MOST_PARTS:
        raise _refused(f"it is nested deeper than {MOST_DEPTH}, or has more than {MOST_PARTS} values")
    return value


def _compile(schema: str, words: LLTokenizer) -> LLMatcher:
    value = checked(schema) if schema else {"type": "object"}
    value.pop("x-guidance", None)  # the library's own settings are ours to choose
    options: Any = {"whitespace_pattern": BLANKS, "lenient": False}
    try:
        text = LLMatcher.grammar_from_json_schema(value, overrides=options)
    except ValueError as e:
        raise _refused(str(e)) from None
    matcher = LLMatcher(words, text, log_level=0, limits=_LIMITS)
    matcher.compute_bitmask()  # some limits show only at the first step
    if matcher.is_error():
        raise _refused(matcher.get_error())
    if warnings := matcher.get_grammar_warnings():
        raise _refused(warnings[0])
    return matcher


def _size(value: Any) -> tuple[int, int]:
    """Depth of a JSON value and how many values it has; counted level by level, so that no nesting exhausts the stack."""
    depth, parts, level = 0, 0, [value]
    while level:
        depth, parts = depth + 1, parts + len(level)
        inner = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
        level = [item for items in inner for item in items]
    return depth, parts


def _refused(cause: str) -> JobRefused:
    first = next(iter(cause.strip().splitlines()), "it cannot be kept")
    return JobRefused(f"couldn't use JSON schema: {first[:300]}", reason=BAD_SCHEMA)
