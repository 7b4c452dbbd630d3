"""The error tree of `node` (kinds and message form: `protocol.errors`).

    NodeError                       adds a `hint`: what a person can do next
    ├── ConfigError (Refused)       node.toml is not acceptable
    ├── HomeError (Refused)         the home directory cannot be used
    │   ├── NotAHome                no node lives there
    │   ├── HomeNotEmpty            init into a directory that already holds something
    │   └── HomeBusy                another process works on this home
    ├── BackupError (Refused)       a backup cannot be made, is damaged, or does not belong here
    ├── IdentityError (Refused)     a key file cannot be used
    │   ├── PassphraseNeeded        the ledger key is locked and nobody gave the passphrase
    │   ├── WrongPassphrase         the passphrase does not open the ledger key
    │   └── OpenPermissions         others may read a private key
    ├── ChildError                  a child process (training, engine) gave no answer
    │   ├── ChildDied (Retry)       the process ended, could not start, or was stopped
    │   ├── JobTimeout (Retry)      no answer before the deadline
    │   ├── JobCrashed (Retry)      the job ended with an unforeseen error inside the child
    │   └── JobRefused (Refused)    the child says no; `reason` is its code
    ├── NetworkError, BlobError     see `node.errors_network`
    ├── ServingError, ExportError, AskError: see `node.errors_serving`
    ├── AppendPaused (Retry)        our own feed may be longer elsewhere: nothing is appended before that is known
    ├── NoCollective (Refused)      the node belongs to no collective yet
    ├── WrongBase (Fatal)           the collective is built on another base model than this node has
    ├── NotAllowed (Refused)        the charter, the role or the state of the node forbids it
    ├── AccessDenied (Refused)      no grant covers an access to rows; `reasons` are the codes
    ├── EgressStopped (Refused)     the operator's policy keeps it back; `reason` is its code
    ├── AddressError (Fatal)        the HTTP server cannot listen there
    └── ControlError (Retry)        the running daemon cannot be asked
        ├── DaemonDown              no daemon listens on this home
        └── ControlTimeout          it did not answer in time

Whoever asks over the control socket gets the same code, kind, text and hint (`node.control`).
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


class BackupError(NodeError, Refused):
    """A backup cannot be made, is damaged, or does not belong to this home."""

    code: ClassVar[str] = "bad-backup"


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


class AddressError(NodeError, Fatal):
    """The HTTP server cannot listen on this address."""

    code: ClassVar[str] = "address"


class AppendPaused(NodeError, Retry):
    """Nothing may be appended to the own feed now."""

    code: ClassVar[str] = "append-paused"


class NoCollective(NodeError, Refused):
    """The node belongs to no collective yet."""

    code: ClassVar[str] = "no-collective"

    def __init__(
        self,
        message: str,
        *,
        hint: str = "fishernet collective create --name NAME, or fishernet collective join ID MULTIADDR",
    ) -> None:
        """Keep how to belong to one as the hint, unless there is a better one."""
        super().__init__(message, hint=hint)


class NotAllowed(NodeError, Refused):
    """The charter, the member's role or the node's state forbids it."""

    code: ClassVar[str] = "not-allowed"


class AccessDenied(NodeError, Refused):
    """No grant covers an access to private rows; `reasons` are the codes of the decision."""

    code: ClassVar[str] = "access-denied"

    def __init__(self, message: str, *, reasons: tuple[str, ...], hint: str = "") -> None:
        """Keep the reasons beside the message."""
        super().__init__(message, hint=hint)
        self.reasons = reasons


class EgressStopped(NodeError, Refused):
    """The operator's egress policy keeps something back; `reason` is its code."""

    code: ClassVar[str] = "egress-stopped"

    def __init__(self, message: str, *, reason: str, hint: str = "") -> None:
        """Keep the reason beside the message."""
        super().__init__(message, hint=hint)
        self.reason = reason


class WrongBase(NodeError, Fatal):
    """The node's base model is not the collective's: it stays out."""

    code: ClassVar[str] = "wrong-base"
