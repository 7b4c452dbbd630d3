"""The error tree of `node` (kinds and message form: `protocol.errors`).

    NodeError                       adds a `hint`: what a person can do next
    ├── ConfigError (Refused)       node.toml is not acceptable
    ├── HomeError (Refused)         the home directory cannot be used
    │   ├── NotAHome                no node lives there
    │   ├── HomeNotEmpty            init into a directory that already holds something
    │   └── HomeBusy                another process works on this home
    ├── IdentityError (Refused)     a key file cannot be used
    │   ├── PassphraseNeeded        the ledger key is locked and nobody gave the passphrase
    │   ├── WrongPassphrase         the passphrase does not open the ledger key
    │   └── OpenPermissions         others may read a private key
    ├── ChildError                  a child process (training, engine) gave no answer
    │   ├── ChildDied (Retry)       the process ended, could not start, or was stopped
    │   ├── JobTimeout (Retry)      no answer before the deadline
    │   ├── JobCrashed (Retry)      the job ended with an unforeseen error inside the child
    │   └── JobRefused (Refused)    the child says no; `reason` is its code
    ├── ServingError                a request to a model cannot be answered
    │   ├── UnknownModel (Refused)  no model has this name here; `near` are names like it
    │   ├── ContextTooLong (Refused) prompt and answer do not fit into what the model reads
    │   ├── BadVector (Refused)     an adapter vector is not what its name says
    │   └── Busy (Retry)            too many requests wait already
    ├── AddressError (Fatal)        the HTTP server cannot listen there
    └── ControlError (Retry)        the running daemon cannot be asked
        ├── DaemonDown              no daemon listens on this home
        └── ControlTimeout          it did not answer in time

A serving error has the code of OpenAI's API where that has one, so that clients written for it understand.
"""

from __future__ import annotations

from typing import ClassVar

from protocol.errors import Fatal, FishernetError, Refused, Retry


class NodeError(FishernetError):
    """An error of the running node, with the next step for a person."""

    code: ClassVar[str] = "node"

    def __init__(self, message: str, *, hint: str = "") -> None:
        """Keep `hint` beside the message."""
        super().__init__(message)
        self.hint = hint


class ConfigError(NodeError, Refused):
    """The node's configuration is not acceptable."""

    code: ClassVar[str] = "bad-config"


class HomeError(NodeError, Refused):
    """The home directory cannot be used."""

    code: ClassVar[str] = "bad-home"


class NotAHome(HomeError):
    """No node lives in this directory."""

    code: ClassVar[str] = "not-a-home"


class HomeNotEmpty(HomeError):
    """The directory for a new home already holds something."""

    code: ClassVar[str] = "home-not-empty"


class HomeBusy(HomeError):
    """Another process holds the home's lock."""

    code: ClassVar[str] = "home-busy"


class IdentityError(NodeError, Refused):
    """A key file cannot be used."""

    code: ClassVar[str] = "bad-identity"


class PassphraseNeeded(IdentityError):
    """The ledger key is locked and no passphrase was given."""

    code: ClassVar[str] = "passphrase-needed"


class WrongPassphrase(IdentityError):
    """The passphrase does not open the ledger key."""

    code: ClassVar[str] = "wrong-passphrase"


class OpenPermissions(IdentityError):
    """Other users may read a private key."""

    code: ClassVar[str] = "open-permissions"


class ControlError(NodeError, Retry):
    """The running daemon cannot be asked."""

    code: ClassVar[str] = "control"


class DaemonDown(ControlError):
    """No daemon listens on this home."""

    code: ClassVar[str] = "daemon-down"


class ControlTimeout(ControlError):
    """The daemon did not answer in time."""

    code: ClassVar[str] = "control-timeout"


class ChildError(NodeError):
    """A child process gave no answer."""

    code: ClassVar[str] = "child"


class ChildDied(ChildError, Retry):
    """The child process ended, could not start, or was stopped."""

    code: ClassVar[str] = "child-died"


class JobTimeout(ChildError, Retry):
    """The child gave no answer before the deadline."""

    code: ClassVar[str] = "job-timeout"


class JobCrashed(ChildError, Retry):
    """A job ended with an unforeseen error inside the child."""

    code: ClassVar[str] = "job-crashed"


class JobRefused(ChildError, Refused):
    """The child refused a job."""

    code: ClassVar[str] = "job-refused"

    def __init__(self, message: str, *, reason: str = "refused", hint: str = "") -> None:
        """Keep the child's own code as `reason`."""
        super().__init__(message, hint=hint)
        self.reason = reason


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


class Busy(ServingError, Retry):
    """Too many requests wait already."""

    code: ClassVar[str] = "busy"

    def __init__(self, message: str, *, retry_after: int = 1, hint: str = "") -> None:
        """Keep the seconds after which asking again makes sense."""
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class AddressError(NodeError, Fatal):
    """The HTTP server cannot listen on this address."""

    code: ClassVar[str] = "address"
