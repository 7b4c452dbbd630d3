"""The cheap checks of one contribution, in order of cost: a pure decision that anybody can repeat.

Knows no losses (the council measures the merged candidate), no disk and no network. Law: the same event, blob and charter
give the same answer on every machine; a `Reject` carries the code that an exclusion in a release cut must name.
"""

from __future__ import annotations

from contrib.updates import Accept, Reject, check
from ledger.charter import Charter
from ledger.collective import Contribution
from protocol import contribution as blobs
from protocol.errors import Refused
from protocol.ids import CollectiveId, digest

__all__ = ["Accept", "Reject", "examine", "oversized"]


def oversized(charter: Charter, published: Contribution) -> Reject | None:
    """The check that needs no blob: what its event says already rules it out."""
    if published.size > charter.gate.max_blob_bytes:
        return _no("too-large", f"{published.size} bytes, the charter allows {charter.gate.max_blob_bytes}")
    return None


def examine(collective: CollectiveId, charter: Charter, published: Contribution, blob: bytes) -> Accept | Reject:
    """Decide the hard checks: size, digest, signature, member, epoch, base, card, then the update itself.

    `charter` is one of the contribution's epoch. Membership and the event's own signature were decided by the ledger.
    """
    refusal = oversized(charter, published)
    if refusal:
        return refusal
    if len(blob) != published.size or digest(blob) != published.blob:
        return _no("wrong-blob", "the blob is not the one that was published")
    try:
        contribution = blobs.unpack(blob, max_bytes=charter.gate.max_blob_bytes)
    except Refused as e:
        return _no(e.code, str(e))
    card = contribution.card
    if (card.collective, card.member) != (collective, published.member):
        return _no("wrong-member", "the card names another member or collective")
    if card.epoch != charter.epoch_id or card.epoch != published.epoch:
        return _no("wrong-epoch", "the card names another epoch")
    if card.base != charter.base.digest:
        return _no("wrong-base", "it was trained on another base model")
    if card.number != published.number:
        return _no("wrong-number", f"the card has number {card.number}, its event {published.number}")
    answer = check(
        contribution,
        coordinates=charter.adapter.coordinates,
        value_bits=charter.update.value_bits,
        density_ppm=charter.update.density_ppm,
        norm_cap_micro=charter.gate.norm_cap_micro,
    )
    if isinstance(answer, Accept) and answer.update.block != charter.update.block:
        return _no("block", f"a scale for {answer.update.block} values, the charter says {charter.update.block}")
    return answer


def _no(code: str, cause: str) -> Reject:
    return Reject(code=code, text=f"couldn't accept contribution: {cause}")
