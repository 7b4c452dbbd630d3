"""API keys: what each one may ask for, kept in the home as hashes, and how a request is decided by one.

    <home>/keys/api.json   written by `fishernet key api` under a lock (temporary name, fsync, rename), mode 0600; the daemon
                           reads it again when it changes; trusted. Whoever copies it has no key: it holds SHA-256 of 256
                           random bits each.

A key names purposes, models by pattern, rates and an end, and may rest on grants with the action `serve`: then `Judge`, which
asks the ledger, decides at every use. Knows no HTTP and no ledger. Invariants: a key is shown once and is nowhere afterwards;
what a key does not name it does not allow; once there was a key, no request without one is answered.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from node.errors import IdentityError
from node.files import write_new

PREFIX: Final = "fn-"
UNSTATED: Final = "unstated"  # the purpose of keys in node.toml, which name none
MOST_KEYS: Final = 10_000
_CODE: Final = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
_PATTERN: Final = re.compile(r"[!-~]{1,256}")

Judge = Callable[[tuple[str, ...], str, int], tuple[str, ...]]
"""Grants that a key rests on, purpose, time in ms -> reasons against, () when all of them hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """One key, without the secret. Times in ms; None: no limit."""

    id: str  # public; what the ledger and the log name it by
    hash: str
    label: str = ""
    purposes: tuple[str, ...] = ()
    models: tuple[str, ...] = ("*",)
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    created: int = 0
    expires: int | None = None
    revoked: int | None = None
    grants: tuple[str, ...] = ()

    def ended(self, now: int) -> str:
        """Why it holds no longer: "revoked" or "expired"; "" when it does."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and now >= self.expires else ""

    def covers(self, names: Sequence[str]) -> bool:
        """Whether a model may be asked for that goes by these names (the one asked for, its canonical one)."""
        return any(fnmatchcase(name, pattern) for name in names for pattern in self.models)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a request by a key was decided: `reason` is "" when it is allowed."""

    reason: str = ""
    purpose: str = UNSTATED
    text: str = ""


def decide(key: ApiKey, *, purpose: str | None, names: Sequence[str], now: int, judge: Judge) -> Verdict:
    """Whether a key that holds may ask for a model under a purpose (None: its first one); rates are not looked at."""
    chosen = purpose or (key.purposes[0] if key.purposes else UNSTATED)
    if chosen not in (key.purposes or (UNSTATED,)):
        named = ", ".join(key.purposes) or "none"
        return Verdict(reason="purpose", purpose=_code(chosen), text=f"its purposes are {named}, not {chosen[:64]}")
    if not key.covers(names):
        return Verdict(reason="model", purpose=chosen, text=f"it covers {', '.join(key.models)}, not {names[0][:80]}")
    if key.grants:
        reasons = judge(key.grants, chosen, now)
        if reasons:
            why = f"the grants it rests on do not allow {chosen} any more ({', '.join(reasons)})"
            return Verdict(reason=reasons[0], purpose=chosen, text=why)
    return Verdict(purpose=chosen)


def no_grants(grants: tuple[str, ...], purpose: str, now: int) -> tuple[str, ...]:
    """The judge where there is no ledger: a key that rests on grants is never allowed."""
    del grants, purpose, now
    return ("no-grant",)


# -- making ----------------------------------------------------------------------------------------------------------
def made(
    *,
    now: int,
    label: str = "",
    purposes: Sequence[str] = (),
    models: Sequence[str] = (),
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
    expires: int | None = None,
    grants: Sequence[str] = (),
) -> tuple[ApiKey, str]:
    """A new key and its secret, which is nowhere else.

    Raises:
        IdentityError: a purpose, pattern, rate or end that no key can have.
    """
    for purpose in purposes:
        if not _CODE.fullmatch(purpose):
            raise IdentityError(
                f"couldn't make API key: purpose {purpose[:80]!r} is not a code such as model-improvement"
            )
    for pattern in models:
        if not _PATTERN.fullmatch(pattern):
            raise IdentityError(
                f"couldn't make API key: {pattern[:80]!r} is no pattern of model names such as release-*"
            )
    for rate in (requests_per_minute, tokens_per_minute):
        if rate is not None and rate < 1:
            raise IdentityError("couldn't make API key: a rate is 1 a minute or more")
    if expires is not None and expires <= now:
        raise IdentityError("couldn't make API key: it would have expired already")
    if grants and not purposes:
        raise IdentityError("couldn't make API key: one that rests on grants names a purpose", hint="--purpose CODE")
    secret = PREFIX + secrets.token_urlsafe(32)
    key = ApiKey(
        id="k" + secrets.token_hex(5),
        hash=hash_of(secret),
        label=label[:200],
        purposes=tuple(dict.fromkeys(purposes)),
        models=tuple(dict.fromkeys(models)) or ("*",),
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        created=now,
        expires=expires,
        grants=tuple(dict.fromkeys(grants)),
    )
    return key, secret


def of_config(secrets_: Sequence[str]) -> tuple[ApiKey, ...]:
    """The keys that stand in node.toml: any model, no purpose, no rate. Their ids tell nothing of them."""
    return tuple(ApiKey(id=f"config-{n}", hash=hash_of(secret)) for n, secret in enumerate(secrets_, 1))


def hash_of(secret: str) -> str:
    """What is kept of a key: it has 256 random bits, so one SHA-256 is enough."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _code(text: str) -> str:
    return text if _CODE.fullmatch(text) else UNSTATED


# -- the file --------------------------------------------------------------------------------------------------------
class KeyFile:
    """The keys of a home."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int, int] | None = None
        self._keys: tuple[ApiKey, ...] = ()

    def all(self) -> tuple[ApiKey, ...]:
        """All keys, those that have ended too; the file is read when it has changed.

        Raises:
            IdentityError: the file cannot be read; nothing is allowed then.
        """
        try:
            facts = self.path.stat()
        except FileNotFoundError:
            self._seen, self._keys = None, ()
            return ()
        seen = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
        if seen != self._seen:
            self._keys, self._seen = self._read(), seen
        return self._keys

    def add(self, key: ApiKey) -> None:
        """Keep a new key."""
        with self._changing() as keys:
            if len(keys) >= MOST_KEYS:
                raise IdentityError(f"couldn't add API key: there are {MOST_KEYS}")
            keys.append(key)

    def revoke(self, wanted: str, now: int) -> ApiKey:
        """End a key by its id or label. Raises IdentityError when not exactly one holds by that name."""
        with self._changing() as keys:
            found = [i for i, key in enumerate(keys) if wanted in (key.id, key.label) and not key.revoked]
            if len(found) != 1:
                cause = f"{len(found)} keys go by that name"
                raise IdentityError(f"couldn't revoke API key {wanted[:80]!r}: {cause}", hint="fishernet key api list")
            keys[found[0]] = replace(keys[found[0]], revoked=now)
            return keys[found[0]]

    @contextmanager
    def _changing(self) -> Iterator[list[ApiKey]]:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            keys = list(self.all())
            yield keys
            body = json.dumps({"keys": [asdict(key) for key in keys]}, ensure_ascii=False, indent=1)
            write_new(self.path, body.encode(), mode=0o600)

    def _read(self) -> tuple[ApiKey, ...]:
        try:
            value = json.loads(self.path.read_bytes())
            return tuple(_parsed(each) for each in value["keys"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
            hint = "restore the file, or delete it and make new keys"
            raise IdentityError(f"couldn't read API keys in {self.path}: {type(e).__name__}", hint=hint) from None


def _parsed(value: Mapping[str, Any]) -> ApiKey:
    lists = {name: tuple(map(str, value[name])) for name in ("purposes", "models", "grants")}
    return ApiKey(**{**value, **lists})
