"""Errors of the network and of blobs: what a peer, the network daemon or the disk did (the rest of the tree: `node.errors`).

    NodeError
    ├── NetworkError                trouble with the network daemon or a peer
    │   ├── PortTaken (Fatal)       another program listens on our port
    │   ├── BadTransport (Fatal)    the network daemon cannot be started as configured
    │   ├── SwarmDown (Retry)       the network daemon ended or does not answer; it is started again
    │   ├── PeerUnreachable (Retry) no stream to this peer now
    │   ├── StreamEnded (Retry)     a stream ended or stalled before all of it came
    │   ├── PeerRefused (Retry)     a peer answered no; `reason` is its code
│   ├── OverQuota (Retry)       the peer has used up its share of our work for now
│   ├── PeerBanned (Refused)    the peer or its member is banned here
    │   ├── NotAMember (Refused)    who asks is no member, so it gets a checkpoint and nothing else
    │   ├── KeptBack (Refused)      the operator of this node lets no blobs out to this member
    │   ├── WrongPeer (Refused)     a request carries the binding of another peer
    │   ├── OutdatedPeer (Refused)  the member speaks through another peer by now
    │   └── UnknownHere (Refused)   the collective or feed that is asked for is not held here
    ├── BundleError (Refused)       a bundle of feeds and blobs cannot be used
    │   ├── BundleCut               it ends before its end: a copy that was broken off
    │   └── NotForUs                it is sealed for others, or of another collective
    └── BlobError                   a blob cannot be had
        ├── BlobMissing (Retry)     it is not here, or nobody connected has it
        ├── BlobCorrupt (Refused)   the bytes are not those of the digest
        ├── BlobTooLarge (Refused)  over the size that the event or the charter states
        └── DiskFull (Retry)        no room for a blob, vector or run; nothing was lost

Refused is the other side's fault and ends the matter with this peer; Retry passes.
"""

from __future__ import annotations

from typing import ClassVar

from node.errors import NodeError
from protocol.errors import Fatal, Refused, Retry


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


class OverQuota(NetworkError, Retry):
    """A peer has used up its share of requests, bytes or signature checks for now."""

    code: ClassVar[str] = "over-quota"


class PeerBanned(NetworkError, Refused):
    """The guard or the operator has banned this peer or its member."""

    code: ClassVar[str] = "banned"


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


class BundleError(NodeError, Refused):
    """A bundle of feeds and blobs cannot be made or used."""

    code: ClassVar[str] = "bad-bundle"


class BundleCut(BundleError):
    """The file ends before the bundle does."""

    code: ClassVar[str] = "bundle-cut"


class NotForUs(BundleError):
    """The bundle is sealed for other members, or of another collective."""

    code: ClassVar[str] = "not-for-us"
