"""What is decided about a request before its first token: which version, by which key, until when, and how it is named.

Invariant: a request is bound to one version here and ends on it; no name of a model leaves by an error that the key may not
see.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate

from fastapi import HTTPException, Request

from node.errors_serving import ModelGone, UnknownModel
from node.ports import Engine, Route, ServedModel
from node.serving.access.keyfile import ApiKey
from node.serving.api.answering import Asked
from node.serving.api.answers import Answer, route_body
from node.serving.api.keys import Admitted, Door
from node.serving.api.requests import ChatRequest, CompletionRequest
from protocol.ids import Digest, short

AUTO, BASE = "auto", "base"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What answers say about the node. `ready` names parts that are up or not; all up: the node is ready."""

    node: str
    head: str  # hex digest of our newest ledger head
    release: Digest | None = None
    ready: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """A request with everything that is decided before the first token."""

    asked: Asked
    admitted: Admitted
    answer: Answer
    headers: Mapping[str, str]


class Binder:
    """Binds requests to versions."""

    def __init__(self, engine: Engine, facts: Callable[[], Facts], door: Door, now: Callable[[], float]) -> None:
        self._engine, self._facts, self._door, self._now = engine, facts, door, now

    @property
    def node(self) -> str:
        """Who serves."""
        return self._facts().node

    def caller(self, request: Request) -> ApiKey | None:
        """The key of a request, None where none is asked for. Raises BadKey."""
        return self._door.caller(request.headers.get("authorization", ""))

    def resolve(self, name: str, key: ApiKey | None) -> ServedModel:
        """The version that a name stands for. Raises UnknownModel, which names near ones that the key covers."""
        try:
            return self._engine.find(name)
        except ModelGone as e:
            if key is None or "*" in key.models:
                raise
            if not self._door.may_see(key, [e.name]):
                raise UnknownModel(f"couldn't find model {name[:80]!r}: this node does not serve it") from None
            if self._door.may_see(key, [e.successor.partition("@")[0]]):
                raise
            raise ModelGone(str(e), name=e.name, successor="") from None
        except UnknownModel as e:
            if key is None or "*" in key.models:
                raise
            near = tuple(each for each in e.near if self._door.may_see(key, [each]))
            hint = f"did you mean {' or '.join(near)}?" if near else ""
            raise UnknownModel(str(e), near=near, hint=hint) from None

    async def bind(self, body: ChatRequest | CompletionRequest, request: Request, timeout: float | None) -> Bound:
        """Decide on a request for an answer; `timeout` is that of the header, in seconds.

        Raises:
            BadKey, KeyDenied, TooFast: the key. UnknownModel: the name.
            What `Engine.route` raises, for "auto".
        """
        key, known = self.caller(request), self._facts()
        prompts, route = body.prompts(), None
        if body.model == AUTO:
            model, route = await self._engine.route(prompts[0])
        else:
            model = self.resolve(body.model, key)
        admitted = self._admit(key, request, body.model, model)
        sampling = body.sampling()
        answer = self._answer(
            body.model, model, known, route, chat=isinstance(body, ChatRequest), scored=sampling.logprobs is not None
        )
        deadline = timeout if body.timeout is None else body.timeout
        asked = Asked(model=model, prompts=prompts, sampling=sampling, tenant=admitted.tenant, deadline=deadline)
        headers = {**headers_of(model, known), "x-request-id": answer.number}
        if route is not None:
            headers["x-fishernet-route"] = route.why
        return Bound(asked=asked, admitted=admitted, answer=answer, headers=headers)

    def base(self, name: str, request: Request) -> tuple[ServedModel, Admitted, Facts]:
        """Decide on a request that only the base model answers. Raises as `bind`."""
        key = self.caller(request)
        model = self.resolve(name, key)
        if model.digest != self._engine.find(BASE).digest:
            raise HTTPException(400, "couldn't embed: only the base model does, ask for base")
        return model, self._admit(key, request, name, model), self._facts()

    def _admit(self, key: ApiKey | None, request: Request, asked: str, model: ServedModel) -> Admitted:
        purpose = request.headers.get("x-fishernet-purpose")
        return self._door.admit(key, purpose=purpose, asked=asked, model=model)

    def _answer(
        self, asked: str, model: ServedModel, known: Facts, route: Route | None, *, chat: bool, scored: bool
    ) -> Answer:
        return Answer(
            number=("chatcmpl-" if chat else "cmpl-") + secrets.token_hex(12),
            created=int(self._now()),
            model=model.name,
            fingerprint=fingerprint(model, known),
            chat=chat,
            origin={
                "model": model.name,
                "release": model.digest,
                "head": known.head,
                "vector": model.model,
                "asked": asked,
                "route": None if route is None else route_body(route),
            },
            scored=scored,
        )


def fingerprint(model: ServedModel, known: Facts) -> str:
    """OpenAI's word for what an answer depends on: beginnings of the version's digest and of the ledger head."""
    return f"fn-{short(model.digest)}-{short(known.head)}"


def headers_of(model: ServedModel, known: Facts) -> dict[str, str]:
    """The headers that say where an answer came from, and when its version ends (RFC 8594) if it does."""
    said = {"x-fishernet-model": model.name, "x-fishernet-release": model.digest, "x-fishernet-head": known.head}
    if model.retires is None:
        return said
    ends = formatdate(model.retires // 1000, usegmt=True)
    return {**said, "sunset": ends, "x-fishernet-successor": model.successor}
