"""Our OpenAPI document says what the API does: a stranger that has only the document asks everything it allows and forbids."""

from __future__ import annotations

from collections import Counter
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    positive_data_acceptance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.support.live_engine import Live

CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
)
RULES = {"best_of", "max_tokens", "prompt", "stream_options", "timeout", "top_logprobs", "response_format"}
"""Fields with rules that join several of them, or that only the engine knows: the document tells them in words."""
ENGINES = {"bad_schema", "bad_tokens", "context_length_exceeded"}
OPERATIONS = [
    ("POST", "/v1/completions", 20),
    ("POST", "/v1/chat/completions", 15),
    ("POST", "/v1/embeddings", 8),
    ("GET", "/v1/models", 3),
    ("GET", "/v1/models/{name}", 8),
    ("GET", "/health", 1),
    ("GET", "/ready", 1),
    ("GET", "/metrics", 2),
]


@pytest.fixture(scope="module")
def document(live: Live) -> Any:
    return schemathesis.openapi.from_url(f"http://127.0.0.1:{live.port}/openapi.json")


def test_document_names_every_route(live: Live) -> None:
    found = httpx.get(f"http://127.0.0.1:{live.port}/openapi.json").json()
    assert {(m.upper(), path) for path, of in found["paths"].items() for m in of} == {(m, p) for m, p, _ in OPERATIONS}
    for path, of in found["paths"].items():
        for operation in of.values():
            error = operation["responses"]["4XX"]["content"]["application/json"]["schema"]["$ref"]
            assert error.endswith("/ErrorBody"), path
            assert "422" not in operation["responses"]


@pytest.mark.parametrize(("method", "path", "examples"), OPERATIONS, ids=[path for _, path, _ in OPERATIONS])
def test_api_keeps_its_document(document: Any, method: str, path: str, examples: int) -> None:
    operation = document[path][method]
    seen: Counter[int] = Counter()

    @seed(20261122)
    @settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        phases=[Phase.generate],
    )
    @given(case=operation.as_strategy())
    def ask(case: Any) -> None:
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            if case.body["model"]:
                case.body["model"] = "base"  # else nothing but unknown models would be asked for
            if path != "/v1/embeddings" and (most := case.body.get("max_tokens")) not in (0, -1):
                case.body["max_tokens"] = 2 if most is None or isinstance(most, int) else most
        answer = case.call(timeout=150)
        seen[answer.status_code] += 1
        if answer.status_code == 504 and answer.json()["error"]["code"] == "deadline_exceeded":
            return  # it asked for an answer within no time
        case.validate_response(answer, checks=CHECKS)
        error = answer.json()["error"] if answer.status_code == 400 else {}
        if error.get("param") not in RULES and error.get("code") not in ENGINES:
            case.validate_response(answer, checks=[positive_data_acceptance])

    ask()
    if path != "/v1/models/{name}":
        assert seen[200], f"no request was answered: {dict(seen)}"
