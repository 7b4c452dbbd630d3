"""Looks through what members wrote into the record for what should never stand there: keys, tokens, personal text, weak salts.

Patterns for well-known forms only; what a pattern does not know it does not find. Pure. Invariant: what was found is never
repeated in the answer, or the report would spread it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ledger.entry import Body

_SECRETS: Final = re.compile(
    rb"-----BEGIN [A-Z ]*PRIVATE KEY"
    rb"|\b[Bb]earer [A-Za-z0-9._~+/=-]{16,}"
    rb"|\b(?:sk|pk|rk|fn)-[A-Za-z0-9_-]{20,}"  # API keys in the style of OpenAI, and our own
    rb"|\bhf_[A-Za-z0-9]{30,}"
    rb"|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_[A-Za-z0-9_]{30,}"
    rb"|\bAKIA[0-9A-Z]{16}\b"
    rb"|\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"  # JSON Web Token (RFC 7519)
)
_MAIL: Final = re.compile(rb"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9.-]{1,190}\.[A-Za-z]{2,24}\b")
_ACCOUNT: Final = re.compile(rb"\b[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")  # IBAN, ISO 13616


_BINARY: Final = frozenset({"fork.found", "head.witnessed", "key.rotated", "keys.bound", "peer.bound"})
"""Types whose bodies are signatures and keys: what looks like an account number there is chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """Something in a body that should not be there: the id of the finding, and a sentence that does not repeat it."""

    id: str
    text: str


def signs(type_: str, body: Body) -> Iterator[Sign]:
    """What the body of an entry of this type shows."""
    if _SECRETS.search(body.data):
        yield Sign(id="secret-in-feed", text="the content looks as if it held a key or a token")
    if (b"@" in body.data and _MAIL.search(body.data)) or (type_ not in _BINARY and _account(body.data)):
        yield Sign(id="personal-data", text="the content looks as if it named a person (a mail address or an account)")


def _account(data: bytes) -> bool:
    """Whether a well-formed account number stands in it: its check digits are right (ISO 7064, MOD 97-10)."""
    for match in _ACCOUNT.finditer(data):
        number = match[0].replace(b" ", b"")
        if int("".join(str(int(chr(c), 36)) for c in number[4:] + number[:4])) % 97 == 1:
            return True
    return False
