"""Who asks, and whether they may: API keys at the door of the HTTP API.

Joins the pure decision of `keys`, the rates, the ledger's judge and the log of decisions. Invariant: a request is answered
only after its key was found to hold and to cover it, at this moment; each decision on a key is counted once.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from node.errors_serving import BadKey, KeyDenied, TooFast
from node.ports import ServedModel, Usage
from node.serving.access.keyfile import ApiKey, Judge, KeyFile, Verdict, decide, hash_of, no_grants, of_config
from node.serving.access.log import AccessLog, Counted
from node.serving.access.rates import Rates

_HINT = "send Authorization: Bearer KEY; a key is made with: fishernet key api add"


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """A request that may go on: by which key, for what; `key` None where no key is asked for."""

    key: ApiKey | None = None
    purpose: str = ""

    @property
    def tenant(self) -> str:
        """Who shares the machine's time with others as one."""
        return self.key.id if self.key else ""


class Door:
    """Decides on the keys of requests."""

    def __init__(
        self,
        *,
        config_keys: Sequence[str] = (),
        file: KeyFile | None = None,
        judge: Judge = no_grants,
        log: AccessLog | None = None,
        denied: Callable[[str], None] = lambda _reason: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Take the keys of node.toml and of `file`; without any the door is open."""
        self._config, self._file, self._judge = of_config(config_keys), file, judge
        self._log, self._denied, self._now = log, denied, now
        self._rates = Rates()

    def use(self, config_keys: Sequence[str]) -> None:
        """Take these keys of node.toml instead of the ones before, from the next request on."""
        self._config = of_config(config_keys)

    def keys(self) -> tuple[ApiKey, ...]:
        """All keys that were ever made here; empty: everybody may ask."""
        return (*self._config, *(self._file.all() if self._file else ()))

    def caller(self, authorization: str) -> ApiKey | None:
        """The key in an Authorization header, None at an open door. Raises BadKey."""
        keys = self.keys()
        if not keys:
            return None
        scheme, _, given = authorization.partition(" ")
        hashed = hash_of(given.strip())
        found = [key for key in keys if hmac.compare_digest(key.hash, hashed)]  # every key, always
        if scheme.lower() != "bearer" or not found:
            self._denied("unknown-key")
            raise BadKey("couldn't take request: a valid API key is needed as bearer token", hint=_HINT)
        if ended := found[0].ended(self._ms()):
            self._denied(ended)
            raise BadKey(f"couldn't take request: the API key {found[0].id} is {ended}", hint=_HINT)
        return found[0]

    def may_see(self, key: ApiKey | None, names: Sequence[str]) -> bool:
        """Whether a model is shown to a key that lists them; nothing is counted."""
        return key is None or key.covers(names)

    def admit(self, key: ApiKey | None, *, purpose: str | None, asked: str, model: ServedModel) -> Admitted:
        """Decide on a request; a refusal is counted here, an answer by `done`.

        Raises:
            KeyDenied: the key does not cover it. TooFast: its rate is used up.
        """
        if key is None:
            return Admitted()
        verdict = decide(
            key, purpose=purpose, names=(asked, model.name, model.digest), now=self._ms(), judge=self._judge
        )
        if verdict.reason:
            self._refuse(key, verdict, model)
            text = f"couldn't take request: the API key {key.id} does not allow it: {verdict.text}"
            raise KeyDenied(text, reason=verdict.reason)
        if wait := self._rates.wait(key, self._now()):
            self._refuse(key, Verdict(reason="rate", purpose=verdict.purpose), model)
            text = f"couldn't take request: the rate of API key {key.id} is used up for {wait} s"
            raise TooFast(text, retry_after=wait)
        return Admitted(key=key, purpose=verdict.purpose)

    def done(self, admitted: Admitted, model: ServedModel, usage: Usage) -> None:
        """An admitted request has ended, answered or not; `usage` is what it cost."""
        key = admitted.key
        if key is None:
            return
        self._rates.spend(key, usage.prompt_tokens + usage.completion_tokens, self._now())
        if self._log is not None:
            counted = Counted(
                key=key.id,
                purpose=admitted.purpose,
                model=model.digest,
                grants=key.grants,
                prompt_tokens=usage.prompt_tokens,
                answer_tokens=usage.completion_tokens,
            )
            self._log.add(counted)

    def _refuse(self, key: ApiKey, verdict: Verdict, model: ServedModel) -> None:
        self._denied(verdict.reason)
        if self._log is not None:
            self._log.add(
                Counted(
                    key=key.id, purpose=verdict.purpose, model=model.digest, reason=verdict.reason, grants=key.grants
                )
            )

    def _ms(self) -> int:
        return int(self._now() * 1000)
