"""Everything a fold knows, in a form in which two folds can be compared."""

from __future__ import annotations

from typing import Any

from ledger.collective import Collective
from ledger.cuts import Cut


def state(fold: Collective) -> dict[str, Any]:
    """Everything a fold knows, without the order in which it learnt it."""
    return {
        "charters": fold.charters,
        "founder": fold.founder,
        "sizes": fold.sizes,
        "leaves": fold.leaves,
        "contributions": fold.contributions,
        "fates": {c.event: fold.fate(c) for by in fold.contributions.values() for c in by},
        "decisions": fold.decisions,
        "data": fold.data,
        "peers": dict(fold.peers),
        "asked": fold.asked,
        "approvals": fold.approvals,
        "ripe": fold.ripe_amendments(),
        "pending": fold.pending(),
        "flaws": sorted(fold.flaws, key=lambda f: (f.source.member, f.source.seq)),
        "double": {(d.first.event, d.second.event, d.height, d.attempt) for d in fold.double_votes},
        "unknown": fold.unknown_types,
        "withheld": sorted(s.event for s in fold.withheld),
        "owners": {f: [fold.owner(f, h) for h in range(1, fold.height + 1)] for f in fold.sizes},
        "bound": fold.witnesses.bound,
        "commitments": fold.witnesses.commitments,
        "cosigned": fold.witnesses.cosigned,
        "counted": {
            c.event: fold.witnesses.organisations(c, fold.charter) for by in fold.contributions.values() for c in by
        },
        "contradicting": fold.witnesses.contradicting(),
        "forked": fold.forked,
        "ended": fold.ended,
        "successions": fold.successions,
        "registers": [fold.in_cut(d.value) for d in fold.releases if isinstance(d.value, Cut)],
        "logs": [fold.tally_of(d.height).verdicts for d in fold.decisions],
    }
