"""G: what stands in a record that everybody keeps, and should not."""

from __future__ import annotations

from typing import Any

from world import World

from ledger import events
from ledger.entry import Record
from protocol.ids import digest
from tests.attacks.case import attack


def described(w: World, **fields: Any) -> Record:
    whole: dict[str, Any] = {
        "dataset": "rows",
        "purposes": ("model-improvement",),
        "basis": "consent",
        "licence": "internal",
    }
    return w.say("ada", events.DataDescribed(**{**whole, **fields}))


@attack(68, "one salt for two contents", "salt-reused", severity="warning")
def _(w: World, lie: bool) -> Record:
    salt = b"sixteen bytes it" if lie else None
    w.say("ada", events.NodeAlive(), salt=salt)
    return w.say("ada", events.NodeAlive(), salt=salt)


@attack(68, "a content without a salt", "salt-reused", severity="warning")
def _(w: World, lie: bool) -> Record:
    return w.say("ada", events.NodeAlive(), salt=bytes(16) if lie else None)


@attack(69, "a person is named in a text field", "personal-data", severity="warning")
def _(w: World, lie: bool) -> Record:
    return described(w, basis="consent of john.smith@example.org" if lie else "consent")


@attack(69, "an account is named in a text field", "personal-data", severity="warning")
def _(w: World, lie: bool) -> Record:
    return described(w, licence="DE89 3704 0044 0532 0130 00" if lie else "DE88 3704 0044 0532 0130 00")


@attack(73, "an erasure names the person it is about", "personal-data", severity="warning")
def _(w: World, lie: bool) -> Record:
    name = "jane.doe@example.org" if lie else "rows"
    w.open_data("ada", "rows")
    request = w.say("ada", events.ErasureRequested(
        dataset=name, scope="subject", rows=1, request=digest(b"1"), contributions=(), entries=(), deadline=w.now + 1,
    ))  # fmt: skip
    w.erased("ada", request)
    return request


SECRETS = {
    "a bearer token": "Bearer abcdefghijklmnopqrstuvwx",
    "a private key": "-----BEGIN OPENSSH PRIVATE KEY-----",
    "a key of an API": "sk-abcdefghijklmnopqrstuvwx",
    "a web token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
}

for _name, _secret in SECRETS.items():

    def _told(w: World, lie: bool, secret: str = _secret) -> Record:
        return described(w, licence=secret if lie else "internal")

    attack(72, f"{_name} stands in a feed", "secret-in-feed")(_told)


@attack("G", "the content of an access is withheld, and nobody asked for its erasure", "withheld", severity="warning")
def _(w: World, lie: bool) -> Record:
    _decision, used = w.read("ada")
    if lie:
        w.without_body(used)
    return used


@attack(45, "an entry of a type that nobody knows is kept and told", "unknown-type", severity="notice")
def _(w: World, lie: bool) -> Record:
    return w.say("ada", "future.thing", {"a": 1}) if lie else w.say("ada", events.NodeAlive())
