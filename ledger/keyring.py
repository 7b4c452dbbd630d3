"""The keys that a member binds in its feed beside the ledger key: its witness keys and a commitment to a recovery key.

The ledger key signs entries and heads, so it is the log key; it is named again so that tools can be configured from the
feed. The witness key proves that it agrees. Knows no feed; keys are arguments. Invariant: a `Bound` came out of `read`,
so its keys are valid points, distinct, and the witness key signed for this member in this collective.
"""

from __future__ import annotations

from dataclasses import dataclass

from ledger import checkpoint, cosignature
from ledger.cosignature import ED25519, ML_DSA_44, WitnessKeys
from ledger.errors import BadEvent
from ledger.events.keys import KeysBound
from protocol import keys
from protocol.canon import Json, encode
from protocol.ids import CollectiveId, Digest, MemberId
from protocol.keys import SigningKey

DOMAIN = "keys-bound"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """The verified keys of one member: those it cosigns with, and the digest of its recovery key, if it has one."""

    witness: WitnessKeys
    recovery: Digest | None


def make(
    witness: SigningKey,
    *,
    collective: CollectiveId,
    member: MemberId,
    post_quantum: bytes | None,
    recovery: Digest | None,
) -> KeysBound:
    """The event that binds these keys; `post_quantum` is the public ML-DSA-44 key. Law: `read(make(...))` passes."""
    public, second = bytes(witness.verify_key), post_quantum
    name = cosignature.verifier_key
    blank = KeysBound(
        log=checkpoint.verifier_key(collective, member),
        witness=name(collective, member, ED25519, public),
        witness_pq=None if second is None else name(collective, member, ML_DSA_44, second),
        recovery=recovery,
        proof=b"",
    )
    proof = keys.sign(witness, DOMAIN, _message(blank, collective, member))
    return KeysBound(log=blank.log, witness=blank.witness, witness_pq=blank.witness_pq, recovery=recovery, proof=proof)


def read(event: KeysBound, collective: CollectiveId, member: MemberId) -> Bound:
    """Check what a member binds in its feed.

    Raises:
        BadEvent: the log key is not its ledger key, or the witness key is.
        Malformed: a key is not a verifier key of this member in this collective.
        BadKey, BadSignature: the witness key is no valid point, or did not sign.
    """
    if event.log != checkpoint.verifier_key(collective, member):
        raise BadEvent("couldn't bind keys: the log key is not the member's ledger key")
    public = cosignature.read_verifier_key(event.witness, collective, member, ED25519).hex()
    if public == member:
        raise BadEvent("couldn't bind keys: the witness key is the ledger key; one key makes one kind of statement")
    second = event.witness_pq
    post_quantum = None if second is None else cosignature.read_verifier_key(second, collective, member, ML_DSA_44)
    keys.verify(public, DOMAIN, _message(event, collective, member), event.proof)
    bound = WitnessKeys(collective=collective, witness=member, public=public, post_quantum=post_quantum)
    return Bound(witness=bound, recovery=event.recovery)


def _message(event: KeysBound, collective: CollectiveId, member: MemberId) -> bytes:
    said: dict[str, Json] = {**event.to_json(), "member": member, "collective": collective}
    del said["proof"]
    return encode(said)
