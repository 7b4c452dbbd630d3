"""Which release a name means. Pure; knows no blob and no server."""

from __future__ import annotations

from typing import Final

from ledger.collective import Collective, Decision
from ledger.cuts import Cut
from node.errors_serving import UnknownRelease

LATEST: Final = "latest"
_PREFIX: Final = 8  # digits


def find(fold: Collective, name: str) -> tuple[Decision, Cut]:
    """The release that a name means: latest, release-<number>, a number, a digest or its first 8 digits or more.

    Raises:
        UnknownRelease: none, or more than one.
    """
    releases = [(d, d.value) for d in fold.releases if isinstance(d.value, Cut)]
    if not releases:
        raise UnknownRelease("couldn't find release: none was decided yet", hint="fishernet log")
    if name == LATEST:
        return releases[-1]
    if (number := name.removeprefix("release-")).isdigit() and len(number) < _PREFIX:
        found = [pair for pair in releases if pair[1].number == int(number)]
    else:
        found = [pair for pair in releases if len(name) >= _PREFIX and pair[0].digest.startswith(name)]
    if len(found) != 1:
        there = ", ".join(f"release-{cut.number}" for _, cut in releases[-8:])
        raise UnknownRelease(
            f"couldn't find release {name[:80]!r}: {len(found)} have this name", hint=f"there are: {there}"
        )
    return found[0]
