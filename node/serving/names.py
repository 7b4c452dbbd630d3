"""The table of names: which version of which model a request means at this moment.

    base                       the bare base model
    view                       the release and what this node accepts beyond it
    latest, release-<number>   the newest release, one release
    member/<name>              what one member has contributed, alone
    <digest>, <digest prefix>  one version, whatever its name stands for now; a prefix has 8 digits or more
    <name>@<digest>            one version under its name: refused once the name has moved on and the version is gone

A release with something in it that was forgotten says until when it is served and what comes after it; then it is refused as
gone, by name and by digest, with the version to ask for instead.

A pure value: every change returns another table, so whoever holds one keeps what it says, and putting a new one in its
place moves all its aliases at once. Knows no file, engine or request. Invariant: a name and a digest lead to at most one
version; the last `KEPT` versions that a name has left are still found by digest.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from node.errors_serving import ModelGone, UnknownModel
from node.ports import Retiring, ServedModel
from protocol.ids import Digest, MemberId, short

BASE, VIEW, LATEST, AUTO = "base", "view", "latest", "auto"
MEMBER: Final = "member/"
KEPT: Final = 16  # versions without a name
_NEAR: Final = 3
_SHOWN: Final = 8
_DIGEST: Final = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """What each name stands for. `old` are versions that have lost their name, the last one first."""

    base: ServedModel
    view: ServedModel | None = None
    releases: Mapping[int, ServedModel] = field(default_factory=dict)
    members: Mapping[str, ServedModel] = field(default_factory=dict)
    old: tuple[ServedModel, ...] = ()
    gone: tuple[Retiring, ...] = ()

    # -- changes -----------------------------------------------------------------------------------------------------
    def with_view(self, model: ServedModel) -> Names:
        """`model` is the view from now on."""
        return replace(self, view=model, old=self._kept(self.view, model))

    def with_release(self, model: ServedModel) -> Names:
        """`model` is the release of its height, and "latest" when none is higher."""
        if model.height is None:
            raise ValueError("a release has a height")
        before = self.releases.get(model.height)
        return replace(self, releases={**self.releases, model.height: model}, old=self._kept(before, model))

    def without_release(self, height: int) -> Names:
        """The release of this height has no name any more."""
        left = {h: model for h, model in self.releases.items() if h != height}
        return replace(self, releases=left, old=self._kept(self.releases.get(height), None))

    def forgetting(self) -> Names:
        """Nothing that has lost its name stays: something in it had to be forgotten."""
        return replace(self, old=())

    def retiring(self, releases: Iterable[Retiring]) -> Names:
        """These releases end at their times or are gone, and no others."""
        ending = {each.release: each for each in releases}
        kept = {
            height: replace(model, retires=end.until, successor=end.successor)
            if (end := ending.get(model.digest)) is not None
            else replace(model, retires=None, successor="")
            for height, model in self.releases.items()
        }
        gone = tuple(each for each in ending.values() if each.gone)
        return self if (kept, gone) == (self.releases, self.gone) else replace(self, releases=kept, gone=gone)

    def with_member(self, model: ServedModel) -> Names:
        """`model` is the adapter of the member that its name says."""
        before = self.members.get(model.name)
        return replace(self, members={**self.members, model.name: model}, old=self._kept(before, model))

    def without_member(self, name: str) -> Names:
        """This member's adapter has no name any more."""
        left = {n: model for n, model in self.members.items() if n != name}
        return replace(self, members=left, old=self._kept(self.members.get(name), None))

    def _kept(self, before: ServedModel | None, now: ServedModel | None) -> tuple[ServedModel, ...]:
        """The old versions, with what a name stood for in front; what stands under a name again is not old."""
        gone = [before] if before is not None and (now is None or before.digest != now.digest) else []
        found: dict[tuple[str, Digest], ServedModel] = {}
        for model in (*gone, *self.old):
            if now is None or (model.name, model.digest) != (now.name, now.digest):
                found.setdefault((model.name, model.digest), model)
        return tuple(found.values())[:KEPT]

    # -- questions ---------------------------------------------------------------------------------------------------
    def listed(self) -> tuple[ServedModel, ...]:
        """Everything that has a name: base, view, releases from the newest to the oldest, members by name."""
        view = [self.view] if self.view else []
        releases = [self.releases[height] for height in sorted(self.releases, reverse=True)]
        return (self.base, *view, *releases, *(self.members[name] for name in sorted(self.members)))

    @property
    def latest(self) -> ServedModel | None:
        """The release of the greatest height."""
        return self.releases[max(self.releases)] if self.releases else None

    def get(self, name: str) -> ServedModel | None:
        """What a name, an alias included, stands for now."""
        if name == LATEST:
            return self.latest
        return next((model for model in self.listed() if model.name == name), None)

    def find(self, wanted: str) -> ServedModel:
        """The version that a name, a digest or `name@digest` means.

        Raises:
            ModelGone: it was withdrawn; the error names the version to ask for instead.
            UnknownModel: none; the error names near ones, or the digest that the name has now.
        """
        name, at, digest = wanted.partition("@")
        if at:
            return self._exactly(name, digest)
        if (model := self.get(name)) is not None:
            return model
        if _DIGEST.fullmatch(name):
            found = self._with_digest(name)
            if len(found) == 1:
                return found[0]
            if found:
                near = tuple(f"{model.name}@{model.digest}" for model in found)
                message = f"couldn't find model {name}: {len(found)} versions have a digest that begins so"
                raise UnknownModel(message, near=near, hint="there are: " + ", ".join(near[:_NEAR]))
            self._refuse_gone(name, digest=name)
        self._refuse_gone(wanted, name=name)
        raise self._unknown(wanted)

    def _exactly(self, name: str, digest: str) -> ServedModel:
        now = self.get(name)
        if _DIGEST.fullmatch(digest) and not (now and now.digest.startswith(digest)):
            self._refuse_gone(f"{name}@{digest}", name=name, digest=digest)
        if now is None and not any(model.name == name for model in self.old):
            raise self._unknown(name)
        if not _DIGEST.fullmatch(digest):
            raise UnknownModel(
                f"couldn't find model {_shown(name)}@{_shown(digest)}: 8 to 64 hex digits are expected after the @",
                near=(f"{name}@{now.digest}",) if now else (),
            )
        if now is not None and now.digest.startswith(digest):
            return now
        past = [m for m in self.releases.values() if name == LATEST] + [m for m in self.old if _was(m, name)]
        found = {model.digest: model for model in past if model.digest.startswith(digest)}
        if len(found) == 1:
            return next(iter(found.values()))
        stands = f"{name} is now {name}@{now.digest}" if now else f"{name} is gone"
        cause = f"{len(found)} versions have a digest that begins so" if found else "this version is not here any more"
        raise UnknownModel(
            f"couldn't find model {_shown(name)}@{digest}: {cause}",
            near=(f"{name}@{now.digest}",) if now else (),
            hint=stands,
        )

    def _refuse_gone(self, wanted: str, *, name: str = "", digest: str = "") -> None:
        """Raise ModelGone when a withdrawn release is meant, by its name, by its digest, or as "latest" pinned to it."""
        for each in self.gone:
            own = f"release-{each.height}"
            if name not in {"", own, LATEST} or not each.release.startswith(digest) or not (digest or name == own):
                continue
            raise ModelGone(
                f"couldn't answer with {_shown(wanted)}: {own}@{short(each.release)} was withdrawn, as something in it had to be "
                "forgotten",
                name=own,
                successor=each.successor,
                hint=f"ask for {each.successor}",
            )

    def _with_digest(self, prefix: str) -> list[ServedModel]:
        """Versions whose digest begins so, each digest once, those with a name first."""
        found: dict[Digest, ServedModel] = {}
        for model in (*self.listed(), *self.old):
            if model.digest.startswith(prefix):
                found.setdefault(model.digest, model)
        return list(found.values())

    def _unknown(self, wanted: str) -> UnknownModel:
        names = [model.name for model in self.listed()] + ([LATEST] if self.releases else [])
        by_case = {name.lower(): name for name in names}
        like = difflib.get_close_matches(wanted[:200].lower(), by_case, n=_NEAR, cutoff=0.5)
        near = tuple(by_case[name] for name in like)
        hint = "did you mean " + " or ".join(near) + "?" if near else "there are: " + ", ".join(names[:_SHOWN])
        if wanted in (VIEW, LATEST):
            hint = "nothing has been merged yet: ask for base until the first contribution or release arrives"
        return UnknownModel(
            f"couldn't find model {_shown(wanted)!r}: this node does not serve it", near=near, hint=hint
        )


def member_names(members: Mapping[MemberId, str]) -> dict[MemberId, str]:
    """The model name of each member's adapter, from ids and names; members of one name are told apart by their ids."""
    plain = {id_: re.sub(r"[^0-9A-Za-z._-]+", "-", name).strip("-") for id_, name in members.items()}
    said = list(plain.values())
    return {
        id_: MEMBER + (name if name and said.count(name) == 1 and not _DIGEST.fullmatch(name) else short(id_))
        for id_, name in plain.items()
    }


def _was(model: ServedModel, name: str) -> bool:
    return model.name == name or (name == LATEST and model.height is not None)


def _shown(text: str) -> str:
    return text[:80]
