"""JSON mode: what ends is JSON of the schema; what cannot be kept is refused; no schema holds the engine for long."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import torch

from contrib.models import tiny_folder
from node.errors import JobRefused
from node.ports import Sampling
from node.serving.engine.grammar import MOST_SCHEMA, Grammar
from node.serving.engine.rows import Work
from node.serving.engine.runner import open_runner
from node.serving.engine.sampling import NO_TOKEN, Drawn, Sampler, draw_rows
from node.serving.engine.text import Text

TOKENIZER = tiny_folder() / "tokenizer.json"
LENGTH = 50
PERSON: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "n": {"type": "string", "maxLength": 4},
        "a": {"type": "integer", "minimum": 0, "maximum": 120},
        "t": {"$ref": "#/$defs/tags"},
    },
    "required": ["n", "a"],
    "additionalProperties": False,
    "$defs": {"tags": {"type": ["array", "null"], "items": {"enum": ["r", "g"]}, "maxItems": 2}},
}


@pytest.fixture(scope="module")
def words() -> Text:
    return Text(tiny_folder())


def sampled(words: Text, schema: str, rows: int) -> list[tuple[str, bool]]:
    """Answers of the test model at temperature 1, all in one batch: text, and whether the grammar let it end."""
    runner = open_runner(tiny_folder(), base="ba" * 32, rows=rows, slots=1)
    ids = words.encode("A person as JSON: ")
    samplers = [
        Sampler(Sampling(temperature=1.0), i, 1, Grammar.for_json(schema, TOKENIZER, words.ends)) for i in range(rows)
    ]
    opened = [runner.open(ids, 0, "x") for _ in range(rows)]
    work = {o.row: (s, ids[o.cached :], []) for o, s in zip(opened, samplers, strict=True)}
    done: list[tuple[str, bool]] = []
    for _ in range(LENGTH):
        steps = [Work(row=row, ids=list(feed), want="last") for row, (_, feed, _) in work.items()]
        logits = torch.cat([out for out in runner.step(steps) if out is not None])
        for (row, (sampler, _, text)), one in zip(
            list(work.items()), draw_rows(logits, [s for s, _, _ in work.values()]), strict=True
        ):
            assert not one.fault, one
            ended = one.token in words.ends
            said = text if ended else [*text, one.token]
            work[row] = (sampler, [one.token], said)
            if ended or sampler.grammar.finished:
                done.append((words.decode(said), True))
                del work[row]
        if not work:
            break
    return done + [(words.decode(text), False) for _, _, text in work.values()]


def test_fifty_sampled_answers_follow_their_schema_or_end_by_length(words: Text) -> None:
    found = sampled(words, json.dumps(PERSON), 50)
    ended = [text for text, whole in found if whole]
    assert len(found) == 50
    assert len(ended) >= 25, "most answers are short enough to end"
    check = jsonschema_rs.validator_for(dict(PERSON))
    for text in ended:
        assert check.is_valid(json.loads(text)), text
    assert len(set(ended)) > 20, "they are drawn, not copied"


def test_any_object_is_a_json_object(words: Text) -> None:
    noise = torch.Generator().manual_seed(4)
    samplers = [Sampler(Sampling(temperature=1.0), i, 1, Grammar.for_json("", TOKENIZER, [256])) for i in range(20)]
    texts: dict[int, list[int]] = {i: [] for i in range(20)}
    for _ in range(80):
        open_ = [i for i in texts if not samplers[i].grammar.finished]
        logits = torch.randn(len(open_), 259, generator=noise)
        logits[:, list(b'"}]')] += 3.0  # so that strings and objects end
        for i, one in zip(open_, draw_rows(logits, [samplers[i] for i in open_]), strict=True):
            texts[i].append(one.token)
    whole = [words.decode(ids) for i, ids in texts.items() if samplers[i].grammar.finished]
    assert len(whole) > 10
    assert all(isinstance(json.loads(text), dict) for text in whole)
    assert any(json.loads(text) for text in whole)


def test_likely_tokens_stay_likely_under_a_grammar() -> None:
    free = torch.randn(1, 259, generator=torch.Generator().manual_seed(1))
    bound = free.clone()
    Grammar.for_json('{"enum":["a","b"]}', TOKENIZER, [256, 258]).mask(bound[0])
    allowed = torch.isfinite(bound[0]).nonzero().flatten().tolist()
    assert allowed == [ord('"')]
    Grammar.for_json("", TOKENIZER, [256]).mask(free[0])
    assert torch.isfinite(free[0]).nonzero().flatten().tolist() == [ord("{")]


def test_copies_of_one_grammar_go_their_own_ways() -> None:
    one, other = (Grammar.for_json('{"enum":["a","b"]}', TOKENIZER, [256]) for _ in range(2))
    for token in b'"a"':
        one.accept(token)
    assert one.finished
    assert not other.finished


def test_end_token_is_allowed_only_where_the_text_is_whole() -> None:
    grammar = Grammar.for_json('{"type":"integer"}', TOKENIZER, [256, 258])
    logits = torch.zeros(259)
    grammar.mask(logits)
    assert not torch.isfinite(logits[[256, 258]]).any()
    grammar.accept(ord("4"))
    logits = torch.zeros(259)
    grammar.mask(logits)
    assert torch.isfinite(logits[[256, 258]]).all()
    grammar.accept(258)
    assert grammar.finished


def test_blanks_cannot_fill_an_answer() -> None:
    grammar = Grammar.for_json('{"type":"object"}', TOKENIZER, [256])
    logits = torch.full((1, 259), -20.0)
    logits[0, [ord(" "), ord("\n")]] = 20.0  # a model that loves blanks
    text, sampler = b"", Sampler(Sampling(), 0, 1, grammar)
    for _ in range(60):
        (one,) = draw_rows(logits.clone(), [sampler])
        text += bytes([one.token])
    assert len(text) - len(text.replace(b" ", b"").replace(b"\n", b"")) < 60
    assert b"   \n" not in text


def test_model_that_knows_more_tokens_than_the_grammar_never_draws_them() -> None:
    logits = torch.zeros(1, 300)
    logits[0, 290] = 9.0
    (one,) = draw_rows(logits, [Sampler(Sampling(), 0, 1, Grammar.for_json("", TOKENIZER, [256]))])
    assert one.token == ord("{")


def test_row_in_which_nothing_may_come_is_a_fault() -> None:
    logits = torch.zeros(1, 259)
    logits[0, ord("{")] = -torch.inf
    (one,) = draw_rows(logits, [Sampler(Sampling(temperature=1.0), 0, 1, Grammar.for_json("", TOKENIZER, [256]))])
    assert one == Drawn(token=-1, fault=NO_TOKEN)


# -- refusals --------------------------------------------------------------------------------------------------------
def deep(levels: int) -> Any:
    value: Any = {"type": "integer"}
    for _ in range(levels):
        value = {"type": "array", "items": value}
    return value


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("{", "not JSON"),
        ("[]", "not an object"),
        ("1", "not an object"),
        ('{"type":"objec"}', "objec"),
        ('{"type":"string","pattern":"("}', "regex"),
        ('{"not":{"type":"string"}}', "not"),
        ('{"type":"array","uniqueItems":true}', "uniqueItems"),
        ('{"$ref":"http://example.org/x"}', "not present"),
        ('{"type":"integer","minimum":5,"maximum":3}', "Unsatisfiable"),
        ('{"type":"array","minItems":-1}', "minItems"),
        (json.dumps({"enum": ["x" * MOST_SCHEMA]}), "bytes"),
        (json.dumps(deep(70)), "nested"),
        ("[" * 20_000, "not JSON"),
        (json.dumps({"properties": {f"p{i}": {"type": "string"} for i in range(1200)}}), "values"),
    ],
)
def test_schema_that_cannot_be_kept_is_refused_with_the_reason(schema: str, said: str) -> None:
    with pytest.raises(JobRefused, match="couldn't use JSON schema") as caught:
        Grammar.for_json(schema, TOKENIZER, [256])
    assert caught.value.reason == "bad_schema"
    assert said in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "(([a-z]{1,500}){1,500}){1,500}"},
        {"type": "string", "pattern": "^.*a.{300}$"},
        {"enum": [f"v{i}" for i in range(1900)]},
        {"anyOf": [{"type": "object", "properties": {f"a{j}": {"minimum": i}}} for i in range(40) for j in range(10)]},
        {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]}}, "$ref": "#/$defs/a"},
        {"type": "array", "minItems": 1_000_000, "items": {"type": "string"}},
    ],
    ids=["nested-repeats", "many-states", "enum", "any-of", "recursion", "long-array"],
)
def test_no_schema_holds_the_engine(schema: dict[str, Any]) -> None:
    since = time.thread_time()
    sampler = None
    with suppress(JobRefused):
        sampler = Sampler(Sampling(temperature=1.0), 0, 1, Grammar.for_json(json.dumps(schema), TOKENIZER, [256]))
    assert time.thread_time() - since < 2
    since = time.thread_time()
    for _ in range(20 if sampler else 0):
        (one,) = draw_rows(torch.zeros(1, 259), [sampler] if sampler else [])
        if one.fault or one.token == 256:
            break
    assert time.thread_time() - since < 1


def test_library_settings_in_a_schema_have_no_effect() -> None:
    schema = json.dumps({"type": "object", "x-guidance": {"lenient": True, "whitespace_pattern": "[ ]*"}, "not": {}})
    with pytest.raises(JobRefused, match="not"):
        Grammar.for_json(schema, TOKENIZER, [256])


def test_first_grammar_of_a_real_vocabulary_is_there_in_time(tmp_path: Path) -> None:
    copy = tmp_path / "tokenizer.json"
    copy.write_bytes(TOKENIZER.read_bytes())
    since = time.thread_time()
    Grammar.for_json("", copy, [256])
    assert time.thread_time() - since < 2
