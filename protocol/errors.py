"""The error tree of `protocol`, and the three kinds every other package derives from.

    FishernetError                  has a stable `code` used by logs, API and ledger
    ├── Refused                     the other side's fault: drop it, count it against the sender
    │   ├── Malformed               bytes that are not what the format says
    │   │   ├── NotCanonical        decodes, but another encoding of the same value is the right one
    │   │   └── TooLarge            over a limit that is checked before anything is allocated
    │   ├── BadSignature            the signature does not verify
    │   ├── BadProof                a proof of the hash tree does not show what it should
    │   ├── BadEnvelope             a sealed stream that is not for this key, or was changed or cut off
    │   └── BadKey                  not an acceptable Ed25519 public key
    ├── Retry                       passing trouble on our side or on the way
    └── Fatal                       the daemon must stop and say why

Message form: "couldn't <verb> <thing>: <cause>".
"""

from __future__ import annotations

from typing import ClassVar


class FishernetError(Exception):
    """Root of every error this program raises on purpose."""

    code: ClassVar[str] = "error"


class Refused(FishernetError):
    """Input of another party, a file or a request is not acceptable."""

    code: ClassVar[str] = "refused"


class Retry(FishernetError):
    """Something that may work later without any change."""

    code: ClassVar[str] = "retry"


class Fatal(FishernetError):
    """The daemon cannot go on safely."""

    code: ClassVar[str] = "fatal"


class Malformed(Refused):
    """Bytes that do not follow the format."""

    code: ClassVar[str] = "malformed"


class NotCanonical(Malformed):
    """A second spelling of a value that has exactly one."""

    code: ClassVar[str] = "not-canonical"


class TooLarge(Malformed):
    """Over a size, count or depth limit."""

    code: ClassVar[str] = "too-large"


class BadSignature(Refused):
    """The signature does not verify under the named key."""

    code: ClassVar[str] = "bad-signature"


class BadProof(Refused):
    """An inclusion or consistency proof that does not lead to the signed root."""

    code: ClassVar[str] = "wrong-proof"


class BadKey(Refused):
    """The public key is not a point that may name a member."""

    code: ClassVar[str] = "bad-key"


class BadEnvelope(Refused):
    """A sealed stream that is not for this key, or whose bytes were changed or cut off."""

    code: ClassVar[str] = "bad-envelope"
