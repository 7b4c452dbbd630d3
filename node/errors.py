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
    ├── AskError                    a model server gave no answer to `fishernet chat`
    │   ├── AskRefused (Refused)    it says no; `status` is the HTTP status
    │   └── AskFailed (Retry)       nobody listens there, or the connection broke
    ├── NetworkError                trouble with the network daemon or a peer
    │   ├── PortTaken (Fatal)       another program listens on our port
    │   ├── BadTransport (Fatal)    the network daemon cannot be started as configured
    │   ├── SwarmDown (Retry)       the network daemon ended or does not answer; it is started again
    │   ├── PeerUnreachable (Retry) no stream to this peer now
    │   ├── StreamEnded (Retry)     a stream ended or stalled before all of it came
    │   ├── PeerRefused (Retry)     a peer answered no; `reason` is its code
    │   ├── NotAMember (Refused)    who asks is no member, so it gets a checkpoint and nothing else
    │   ├── KeptBack (Refused)      the operator of this node lets no blobs out to this member
    │   ├── WrongPeer (Refused)     a request carries the binding of another peer
    │   ├── OutdatedPeer (Refused)  the member speaks through another peer by now
    │   └── UnknownHere (Refused)   the collective or feed that is asked for is not held here
    ├── BlobError                   a blob cannot be had
    │   ├── BlobMissing (Retry)     it is not here, or nobody connected has it
    │   ├── BlobCorrupt (Refused)   the bytes are not those of the digest
    │   ├── BlobTooLarge (Refused)  over the size that the event or the charter states
    │   └── DiskFull (Retry)        no room for a blob, vector or run; nothing was lost
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


class AddressError(NodeError, Fatal):
    """The HTTP server cannot listen on this address."""

    code: ClassVar[str] = "address"


class NetworkError(NodeError):
    """Trouble with the network daemon or a peer."""

    code: ClassVar[str] = "network"


class PortTaken(NetworkError, Fatal):
    """Another program listens on the configured port."""

    code: ClassVar[str] = "port-in-use"


class BadTransport(NetworkError, Fatal):
    """The identity file, the socket directory or an address is not usable by the network daemon."""

    code: ClassVar[str] = "bad-transport"


class SwarmDown(NetworkError, Retry):
    """The network daemon ended or does not answer."""

    code: ClassVar[str] = "swarm-down"


class PeerUnreachable(NetworkError, Retry):
    """No stream to this peer can be opened now."""

    code: ClassVar[str] = "peer-unreachable"


class StreamEnded(NetworkError, Retry):
    """A stream ended or stalled in the middle."""

    code: ClassVar[str] = "stream-ended"


class PeerRefused(NetworkError, Retry):
    """A peer answered no; it may be able to help later."""

    code: ClassVar[str] = "peer-refused"

    def __init__(self, message: str, *, reason: str, hint: str = "") -> None:
        """Keep the peer's own code as `reason`."""
        super().__init__(message, hint=hint)
        self.reason = reason


class NotAMember(NetworkError, Refused):
    """Who asks is not a member of the collective."""

    code: ClassVar[str] = "not-a-member"


class KeptBack(NetworkError, Refused):
    """The operator's egress policy lets no blobs out to this member."""

    code: ClassVar[str] = "kept-back"


class WrongPeer(NetworkError, Refused):
    """A request carries the binding of another peer than the one that sent it."""

    code: ClassVar[str] = "wrong-peer"


class OutdatedPeer(NetworkError, Refused):
    """The member has bound another transport key since this binding was made."""

    code: ClassVar[str] = "outdated-peer"


class UnknownHere(NetworkError, Refused):
    """The collective or feed that is asked for is not held here."""

    code: ClassVar[str] = "unknown-here"


class BlobError(NodeError):
    """A blob cannot be had."""

    code: ClassVar[str] = "blob"


class BlobMissing(BlobError, Retry):
    """The blob is not here, or nobody connected has it."""

    code: ClassVar[str] = "blob-missing"


class BlobCorrupt(BlobError, Refused):
    """The bytes are not those of the digest."""

    code: ClassVar[str] = "blob-corrupt"


class BlobTooLarge(BlobError, Refused):
    """The blob is larger than the event or the charter allows."""

    code: ClassVar[str] = "blob-too-large"


class DiskFull(BlobError, Retry):
    """There is no room on the disk."""

    code: ClassVar[str] = "disk-full"


class AppendPaused(NodeError, Retry):
    """Nothing may be appended to the own feed now."""

    code: ClassVar[str] = "append-paused"


class NoCollective(NodeError, Refused):
    """The node belongs to no collective yet."""

    code: ClassVar[str] = "no-collective"


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
