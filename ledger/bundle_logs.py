"""Whether the replay logs in a forget bundle say of both releases what certified cuts, charters and signed entries say.

Knows no vector: that registers are the sums of their inputs is repeated from blobs elsewhere. Invariant: a log that passes lists
exactly contributions that their authors published under the release, with the digests that a quorum decided.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from ledger import events
from ledger.bundle import Bundle
from ledger.charter import Charter
from ledger.cuts import Cut, Value
from ledger.errors import BadBundle
from protocol.canon import Json
from protocol.ids import EventId, MemberId

LOG_KEYS: Final = frozenset(
    {"v", "kind", "collective", "release", "number", "height", "charter", "epoch", "coordinates", "recipe", "weights",
     "inputs", "left_out", "registers", "model", "recomputed"}
)  # fmt: skip
Published = Callable[[EventId], tuple[events.Published, MemberId, int]]
"""The body, author and place of a contribution's entry, verified; raises where it is not in the bundle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """A decision whose quorum was checked, with the charter it was decided under."""

    value: Value
    proposal: EventId
    charter: Charter


@dataclass(frozen=True, slots=True, kw_only=True)
class Logs:
    """The logs of one bundle; `charters` are those in force, each from its height on."""

    bundle: Bundle
    charters: Sequence[tuple[int, Charter]]
    published: Published

    def check(
        self, old_log: dict[str, Json] | None, old: Decided | None, new_log: dict[str, Json] | None, new: Decided
    ) -> None:
        """Both logs, and that nothing was lost between them (raises BadBundle)."""
        self._log(new_log, new)
        self._log(old_log, old)
        if isinstance(new.value, Cut):
            self._between(old, new.value)

    def _log(self, log: dict[str, Json] | None, of: Decided | None) -> None:
        """A log says of its release what the certified cut, the charter and the entries say."""
        if log is None or of is None or not isinstance(of.value, Cut):
            if log is not None or of is not None:
                no("there is a log without its release, or a release without its log")
            return
        cut, charter = of.value, of.charter
        expected: dict[str, Json] = {
            "v": 1,
            "kind": "replay",
            "collective": self.bundle.collective,
            "release": cut.digest,
            "number": cut.number,
            "height": cut.place.height,
            "charter": charter.digest,
            "epoch": cut.epoch,
            "coordinates": charter.adapter.coordinates,
            "recipe": cut.recipe,
            "registers": [[r.member, r.digest] for r in cut.registers],
            "model": cut.model,
            "weights": self.weights(cut, charter),
        }
        if log.keys() != LOG_KEYS or not isinstance(log["recomputed"], bool):
            no(f"the log of release {cut.number} has not exactly its fields")
        for key, value in expected.items():
            if log[key] != value or isinstance(log[key], bool):
                no(f"the log of release {cut.number} says something else about {key}")
        excluded = {x.event: x for x in cut.excluded}
        inputs, left = self._rows(log["inputs"], cut, 5), self._rows(log["left_out"], cut, 7)
        if inputs.keys() & excluded.keys() or left.keys() != excluded.keys():
            no(f"the log of release {cut.number} has in it what was left out, or lacks something of that")
        for event, row in left.items():
            if (row[5], row[6]) != (excluded[event].reason, list(excluded[event].evidence)):
                no(f"the log of release {cut.number} gives another reason for {event[:12]}")
        if sorted({str(row[1]) for row in inputs.values()}) != [r.member for r in cut.registers]:
            no(f"the log of release {cut.number} has other members than registers")
        self._complete(cut, {**inputs, **left})

    def _rows(self, value: Json, cut: Cut, width: int) -> dict[EventId, list[Json]]:
        """Rows of contributions, each as its entry says, ascending by event."""
        if not isinstance(value, list):
            no(f"the log of release {cut.number} lists no contributions")
        found: dict[EventId, list[Json]] = {}
        for row in value:
            if not (isinstance(row, list) and len(row) == width and isinstance(row[0], str)):
                no(f"the log of release {cut.number} has a row that is none")
            event = EventId(row[0])
            said, member, seq = self.published(event)
            expected: list[Json] = [
                event,
                owner(self.charters, member, cut.place.height),
                member,
                said.number,
                said.blob,
            ]
            if row[:5] != expected or isinstance(row[3], bool) or (found and event <= max(found)):
                no(f"the log of release {cut.number} says something else about {event[:12]} than its author")
            if said.epoch != cut.epoch or seq >= cut.place.size_of(member):
                no(f"{event[:12]} does not lie under release {cut.number}")
            found[event] = list(row)
        return found

    def weights(self, cut: Cut, charter: Charter) -> list[Json]:
        """Merge weights, as the ledger reckons them: contributors', and those of former ones as their last seat had it."""
        found = {m.id: m.weight for m in charter.contributors}
        for register in cut.registers:
            if register.member not in found:
                seats = [c.member(register.member) for start, c in self.charters if start <= cut.place.height]
                found[register.member] = next((s.weight for s in reversed(seats) if s), 1)
        return [[m, w] for m, w in sorted(found.items())]

    def _complete(self, cut: Cut, rows: Mapping[EventId, list[Json]]) -> None:
        """No contribution is missing: of each feed the numbers follow each other, up to the last that the cut names.

        Where a member was no contributor all along, or its seat had other keys, numbers may be missing from the front.
        """
        for last in cut.last:
            row = rows.get(last.event)
            if row is None or (row[1], row[3]) != (last.member, last.number):
                no(f"the log of release {cut.number} lacks the last contribution of {last.member[:12]}")
        if {x.member for x in cut.last} != {str(row[1]) for row in rows.values()}:
            no(f"the log of release {cut.number} has contributions of members that the cut does not name")
        by_feed: dict[str, list[int]] = {}
        for row in rows.values():
            by_feed.setdefault(str(row[2]), []).append(int(str(row[3])))
        for feed, numbers in by_feed.items():
            numbers.sort()
            steady = all(
                (seat := c.seat_of(feed)) is not None and seat.role == "contributor"
                for start, c in self.charters
                if start <= cut.place.height
            )
            if steady and numbers != list(range(1, len(numbers) + 1)):
                no(f"the log of release {cut.number} lacks contributions of {feed[:12]}")
            if len(set(numbers)) != len(numbers):
                no(f"the log of release {cut.number} has a contribution of {feed[:12]} twice")

    def _between(self, old: Decided | None, new: Cut) -> None:
        """Whatever was in the old release and is not left out by the new one is in the new one."""
        log, after = self.bundle.logs["old"], self.bundle.logs["new"]
        if (
            log is None
            or after is None
            or old is None
            or not isinstance(old.value, Cut)
            or old.value.epoch != new.epoch
        ):
            return
        out = {x.event for x in new.excluded}
        was, now = ({str(row[0]) for row in _lists(each["inputs"])} for each in (log, after))
        if was - out - now:
            no("something of the old release is neither in the new one nor left out by it")

    def check_releases(self, releases: tuple[Cut, ...], new: Cut) -> None:
        """The releases that had them in it are listed as decided; a model is the maker's word unless the new one is it."""
        rows = self.bundle.releases
        listed = [(r.number, r.release, r.model) for r in rows]
        if listed != [(c.number, c.digest, c.model) for c in releases]:
            no("the releases that had them in it are not listed as they were decided")
        old, now = self.bundle.logs["old"], self.bundle.logs["new"]
        if not rows or old is None or now is None or rows[-1].release != old["release"]:
            return
        rest = [row for row in _lists(old["inputs"]) if str(row[0]) not in self.bundle.asked]
        same = (rest, old["recipe"], old["weights"]) == (now["inputs"], now["recipe"], now["weights"])
        if same and rows[-1].without is not None and rows[-1].without != new.model:
            no(f"release {rows[-1].number} without them is not the new one, although nothing else is in that")


def owner(charters: Sequence[tuple[int, Charter]], feed: MemberId, height: int) -> MemberId:
    """Whose register a feed feeds at a height: the present key of the last seat that it had by then."""
    seats = [charter.seat_of(feed) for start, charter in charters if start <= height]
    return next((seat.id for seat in reversed(seats) if seat is not None), feed)


def _lists(value: Json) -> list[list[Json]]:
    return [list(row) for row in value if isinstance(row, list)] if isinstance(value, list) else []


def no(cause: str) -> NoReturn:
    """Refuse the bundle."""
    raise BadBundle(f"couldn't verify bundle: {cause}")
