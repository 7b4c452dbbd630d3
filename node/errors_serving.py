"""Errors of answering, exporting and asking models (the rest of the tree: `node.errors`).

    NodeError
    ├── ServingError                a request to a model cannot be answered
    │   ├── UnknownModel (Refused)  no model has this name here; `near` are names like it
    │   │   └── ModelGone           it was withdrawn: something in it had to be forgotten; `successor` is without it
    │   ├── ContextTooLong (Refused) prompt and answer do not fit into what the model reads
    │   ├── BadVector (Refused)     an adapter vector is not what its name says
    │   ├── BadKey (Refused)        the API key is unknown, has expired or was revoked
    │   ├── KeyDenied (Refused)     the API key does not reach so far; `reason` is the code
    │   ├── TooLate (Retry)         the request's own timeout passed before the first token
    │   └── Busy (Retry)            too many requests wait already
    │       └── TooFast             the API key's rate is used up for now
    ├── ExportError (Refused)       a release cannot be written for other programs
    │   ├── UnknownRelease          no release has this name here
    │   ├── ReleaseGone             it was withdrawn: something in it had to be forgotten
    │   ├── NotRecomputable         its model does not follow from what this home holds
    │   └── CannotSign              no signer, or none that takes this key
    └── AskError                    a model server gave no answer to `fishernet chat`
        ├── AskRefused (Refused)    it says no; `status` is the HTTP status
        └── AskFailed (Retry)       nobody listens there, or the connection broke

A serving error has the code of OpenAI's API where that has one, so that clients written for it understand.
"""

from __future__ import annotations

from typing import ClassVar

from node.errors import NodeError
from protocol.errors import Refused, Retry


class ServingError(NodeError):
    """A request to a model cannot be answered."""

    code: ClassVar[str] = "serving"


class UnknownModel(ServingError, Refused):
    """No model has this name here."""

    code: ClassVar[str] = "model_not_found"

    def __init__(self, message: str, *, near: tuple[str, ...] = (), hint: str = "") -> None:
        """Keep the names that look like the asked one."""
        super().__init__(message, hint=hint)
        self.near = near


class ModelGone(UnknownModel):
    """The version was withdrawn because something in it had to be forgotten."""

    code: ClassVar[str] = "model_gone"

    def __init__(self, message: str, *, name: str, successor: str, hint: str = "") -> None:
        """Keep its name, and the version without what was forgotten as `name@digest` ("": who asks may not see it)."""
        super().__init__(message, near=(successor,) if successor else (), hint=hint)
        self.name, self.successor = name, successor


class ContextTooLong(ServingError, Refused):
    """Prompt and answer together are longer than what the model reads."""

    code: ClassVar[str] = "context_length_exceeded"

    def __init__(self, message: str, *, limit: int, hint: str = "") -> None:
        """Keep the model's limit in tokens."""
        super().__init__(message, hint=hint)
        self.limit = limit


class BadVector(ServingError, Refused):
    """An adapter vector is not what its name says."""

    code: ClassVar[str] = "bad-vector"


class BadKey(ServingError, Refused):
    """The API key is unknown, has expired or was revoked."""

    code: ClassVar[str] = "invalid_api_key"


class KeyDenied(ServingError, Refused):
    """The API key does not reach so far; `reason` is the code of what is missing."""

    code: ClassVar[str] = "key-denied"

    def __init__(self, message: str, *, reason: str, hint: str = "") -> None:
        """Keep the reason beside the message."""
        super().__init__(message, hint=hint)
        self.reason = reason


class TooLate(ServingError, Retry):
    """The request's own timeout passed before the first token."""

    code: ClassVar[str] = "deadline_exceeded"


class Busy(ServingError, Retry):
    """Too many requests wait already."""

    code: ClassVar[str] = "busy"

    def __init__(self, message: str, *, retry_after: int = 1, hint: str = "") -> None:
        """Keep the seconds after which asking again makes sense."""
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class TooFast(Busy):
    """The API key's rate is used up for now."""

    code: ClassVar[str] = "rate_limit_exceeded"


class ExportError(NodeError, Refused):
    """A release cannot be written for other programs."""

    code: ClassVar[str] = "export"


class UnknownRelease(ExportError):
    """No release, or more than one, has this name here."""

    code: ClassVar[str] = "unknown-release"


class ReleaseGone(ExportError):
    """The release was withdrawn because something in it had to be forgotten, and its deadline has passed."""

    code: ClassVar[str] = "release-gone"


class NotRecomputable(ExportError):
    """The model of a release does not follow from what this home holds."""

    code: ClassVar[str] = "not-recomputable"


class CannotSign(ExportError):
    """No program to sign with, or none that takes this key."""

    code: ClassVar[str] = "cannot-sign"


class AskError(NodeError):
    """A model server gave no answer."""

    code: ClassVar[str] = "ask"


class AskRefused(AskError, Refused):
    """A model server refused a question; the message is its own."""

    code: ClassVar[str] = "ask-refused"

    def __init__(self, message: str, *, status: int, hint: str = "") -> None:
        """Keep the HTTP status beside the message."""
        super().__init__(message, hint=hint)
        self.status = status


class AskFailed(AskError, Retry):
    """Nobody listens there, the connection broke, or what came is not this API."""

    code: ClassVar[str] = "ask-failed"
