"""A seat that changes its key keeps its data sets, grants and what was taken from them; the old key gives nothing more."""

from __future__ import annotations

from typing import Any

from granted import NOW, Village
from paper import Paper, PaperMember, key

from ledger import events, succession
from ledger.access.book import Book, past_in
from ledger.access.decision import Decision, decide
from ledger.events import AccessRequest
from protocol.ids import Digest, EventId, MemberId, digest
from protocol.keys import member_id


class Table:
    """A paper collective in which bob owns `notes`, and a book of what ada knows."""

    def __init__(self) -> None:
        self.paper = Paper.found(["ada", "bob", "cyd"])
        self.paper.release()
        self.bob, self.made = self.paper.members["bob"], 0
        self.commit(self.bob)

    def commit(self, who: PaperMember) -> None:
        root = digest(b"root")
        who.say(
            events.DataCommitted(dataset="notes", train_rows=9, held_out_rows=1, train_root=root, held_out_root=root)
        )

    def grant(self, by: PaperMember, *members: MemberId, **fields: Any) -> EventId:
        self.made += 1
        issued = events.GrantIssued(
            **{
                "dataset": "notes",
                "selector": events.Selector(),
                "actions": ("train",),
                "purposes": ("research",),
                "audience": events.Audience(members=tuple(sorted(members))),
                "not_before": 0,
                "expires": None,
                "uses": None,
                "epsilon_micro": None,
                "depth": 0,
                "parent": None,
                "basis": "",
                "nonce": Digest(digest(str(self.made).encode())),
                **fields,
            }
        )
        return by.say(issued).entry.event

    def rotate(self, size: int | None = None) -> PaperMember:
        """Bob gives his seat to another key, which trusts `size` entries of the old feed."""
        count = len(self.bob.feed) if size is None else size
        heir = self.paper.guest("bob two")
        self.paper.dead.add("bob two")
        said = succession.make(
            key("bob"),
            key("bob two"),
            collective=self.bob.collective,
            old=self.bob.id,
            size=count,
            leaf=self.bob.feed[count - 1].entry.leaf,
        )
        self.bob.say(events.AmendmentProposed(change=said.change()))
        self.paper.decide()
        self.paper.dead = {"bob"}
        self.paper.deliver_all()
        assert self.paper.members["ada"].fold.charter.member(heir.id) is not None
        return heir

    def decide(self, actor: MemberId, owner: MemberId, **fields: Any) -> Decision:
        self.paper.deliver_all()
        book = Book()
        for member in self.paper.members.values():
            book.apply_all(member.feed)
        request = AccessRequest(
            **{
                "actor": actor,
                "action": "train",
                "dataset": "notes" if actor == owner else f"{owner}/notes",
                "purpose": "research",
                "columns": (),
                "rows": 9,
                "epsilon_micro": None,
                "at": NOW,
                "run": "",
                **fields,
            }
        )
        return decide(book, request, past_in(self.paper.members["ada"].fold))


def test_grants_by_and_to_a_seat_stay_when_it_has_another_key() -> None:
    table = Table()
    own = table.grant(table.bob, table.bob.id)
    cyd = table.paper.members["cyd"]
    other = table.grant(table.bob, cyd.id)
    heir = table.rotate()
    assert table.decide(heir.id, heir.id).grants == (own,)
    assert table.decide(cyd.id, heir.id).grants == (other,)
    assert table.decide(table.bob.id, heir.id).reasons == ("no-seat",), "the old key itself may nothing more"
    assert table.decide(cyd.id, table.bob.id).grants == (other,), "the old name of the owner still leads there"


def test_the_present_key_takes_away_what_the_earlier_one_gave() -> None:
    table = Table()
    cyd = table.paper.members["cyd"].id
    grant = table.grant(table.bob, cyd)
    heir = table.rotate()
    heir.say(events.GrantRevoked(grant=grant, reason="withdrawn"))
    assert table.decide(cyd, heir.id).reasons == ("revoked",)


def test_what_was_revoked_or_used_up_before_stays_so() -> None:
    table = Table()
    limited = table.grant(table.bob, table.bob.id, uses=1)
    used = table.decide(table.bob.id, table.bob.id)
    request = AccessRequest(
        actor=table.bob.id,
        action="train",
        dataset="notes",
        purpose="research",
        columns=(),
        rows=9,
        epsilon_micro=None,
        at=NOW,
        run="",
    )
    table.bob.say(
        events.AccessDecided(request=request, grants=used.grants, verdict="allow", reasons=(), policy=digest(b"policy"))
    )
    heir = table.rotate()
    table.commit(heir)
    answer = table.decide(heir.id, heir.id)
    assert (answer.reasons, answer.grants) == (("uses-exhausted",), (limited,))


def test_attack_32_what_the_old_key_signs_after_its_seat_was_given_away_grants_nothing() -> None:
    table = Table()
    trusted = len(table.bob.feed)
    heir = table.rotate(size=trusted)
    thief = table.bob
    table.grant(thief, thief.id, heir.id)
    assert table.decide(heir.id, heir.id).reasons == ("no-grant",)
    assert table.decide(thief.id, thief.id).reasons == ("no-grant",)


def test_a_feed_that_ended_itself_grants_nothing_more() -> None:
    village = Village()
    village.commit("ada")
    ada = village.members["ada"]
    said = succession.make(
        key("ada"),
        key("ada two"),
        collective=ada.collective,
        old=ada.id,
        size=len(ada.feed),
        leaf=ada.feed[-1].entry.leaf,
    )
    village.say("ada", events.KeyRotated(statement=said.to_json()))
    village.grant("ada", "bob")
    assert village.decide("bob").reasons == ("no-grant",)
    assert member_id(key("ada two")) == said.new


def test_a_rotation_that_is_of_another_feed_ends_nothing() -> None:
    village = Village()
    village.commit("ada")
    bob = village.members["bob"]
    said = succession.make(
        key("bob"), key("bob two"), collective=bob.collective, old=bob.id, size=0, leaf=Digest("0" * 64)
    )
    village.say("ada", events.KeyRotated(statement=said.to_json()))
    village.grant("ada", "bob")
    assert village.decide("bob").allowed
