"""A name stands for one version at a time, and a digest for one version for good."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors_serving import UnknownModel
from node.ports import ServedModel
from node.serving.names import KEPT, Names, member_names
from protocol.ids import Digest, digest

BASE = ServedModel(name="base", digest=Digest("ba" * 32), vector=None)


def version(name: str, seed: object, height: int | None = None) -> ServedModel:
    return ServedModel(name=name, digest=digest(repr((name, seed)).encode()), vector=Path(f"{seed}.npy"), height=height)


def release(number: int, seed: object = 0) -> ServedModel:
    return version(f"release-{number}", seed, number)


def table() -> Names:
    names = Names(base=BASE).with_view(version("view", 1))
    for number in (2, 10, 1):
        names = names.with_release(release(number))
    return names.with_member(version("member/clinic", 1)).with_member(version("member/ada", 1))


def test_everything_is_listed_base_first_and_the_newest_release_before_older_ones() -> None:
    assert [model.name for model in table().listed()] == [
        "base", "view", "release-10", "release-2", "release-1", "member/ada", "member/clinic"
    ]  # fmt: skip


def test_latest_is_the_release_of_the_greatest_height_whatever_came_last() -> None:
    names = table()
    assert names.find("latest") == names.find("release-10")
    assert names.without_release(10).find("latest") == names.find("release-2")


def test_a_change_makes_another_table_and_leaves_the_one_a_request_holds() -> None:
    before = table()
    after = before.with_view(version("view", 2)).with_release(release(11))
    assert before.find("latest").height == 10
    assert after.find("latest").height == 11
    assert before.find("view").digest != after.find("view").digest


def test_version_is_found_by_its_digest_and_by_a_prefix_that_only_it_has() -> None:
    names = table()
    for model in names.listed():
        for length in (8, 20, 64):
            assert names.find(model.digest[:length]) == model
    with pytest.raises(UnknownModel):
        names.find(names.find("view").digest[:7])


def test_prefix_that_two_versions_share_is_refused_and_names_both() -> None:
    twins = [ServedModel(name=f"member/{n}", digest=Digest("abcdef01" + n * 56), vector=Path("x")) for n in "23"]
    names = table().with_member(twins[0]).with_member(twins[1])
    with pytest.raises(UnknownModel, match="2 versions") as caught:
        names.find("abcdef01")
    assert set(caught.value.near) == {f"{twin.name}@{twin.digest}" for twin in twins}
    assert names.find("abcdef012") == twins[0]


def test_exact_version_is_served_under_its_name_while_it_is_the_one_that_the_name_means() -> None:
    names = table()
    for name in ("base", "view", "latest", "release-2", "member/clinic"):
        model = names.find(name)
        assert names.find(f"{name}@{model.digest}") == names.find(f"{name}@{model.digest[:8]}") == model


def test_old_version_is_still_found_by_digest_and_under_its_name_while_it_is_kept() -> None:
    names = table()
    old = names.find("view")
    names = names.with_view(version("view", 2))
    assert names.find("view").digest != old.digest
    assert names.find(old.digest) == names.find(f"view@{old.digest}") == old
    assert old not in names.listed()


def test_exact_version_that_is_gone_is_refused_with_the_digest_of_today() -> None:
    names = table()
    old = names.find("view")
    for seed in range(2, KEPT + 4):
        names = names.with_view(version("view", seed))
    assert len(names.old) == KEPT
    with pytest.raises(UnknownModel) as caught:
        names.find(f"view@{old.digest}")
    now = names.find("view").digest
    assert caught.value.near == (f"view@{now}",)
    assert now in caught.value.hint
    with pytest.raises(UnknownModel):
        names.find(old.digest)


def test_latest_at_a_digest_finds_every_release_that_is_here() -> None:
    names = table()
    assert names.find(f"latest@{names.find('release-1').digest}") == names.find("release-1")
    dropped = names.find("release-10")
    assert names.without_release(10).find(f"latest@{dropped.digest}") == dropped
    with pytest.raises(UnknownModel):
        names.find(f"latest@{names.find('view').digest}")


def test_digest_of_one_name_is_not_taken_under_another() -> None:
    names = table()
    with pytest.raises(UnknownModel):
        names.find(f"release-2@{names.find('release-1').digest}")
    with pytest.raises(UnknownModel):
        names.find(f"member/ada@{names.find('member/clinic').digest}")


@pytest.mark.parametrize(
    "wanted", ["view@", "view@xyz", "view@ABCDEF0123", "view@1234567", "view@" + "0" * 65, "@", "@" + "0" * 64]
)
def test_what_is_no_digest_after_the_at_is_refused(wanted: str) -> None:
    with pytest.raises(UnknownModel):
        table().find(wanted)


def test_version_that_comes_back_is_not_old_any_more() -> None:
    first, second = version("view", 1), version("view", 2)
    names = Names(base=BASE).with_view(first).with_view(second).with_view(first)
    assert names.old == (second,)
    assert names.find(first.digest) == first


def test_same_bytes_under_two_names_are_found_by_either_and_by_digest() -> None:
    shared = Digest("cc" * 32)
    view = ServedModel(name="view", digest=shared, vector=Path("x"))
    part = ServedModel(name="member/ada", digest=shared, vector=Path("x"))
    names = Names(base=BASE).with_view(view).with_member(part)
    assert names.find("cc" * 32) == view
    assert names.find(f"member/ada@{shared}") == part


def test_unknown_name_is_answered_with_near_ones() -> None:
    for wanted, near in (("relase-2", "release-2"), ("member/clinik", "member/clinic"), ("LATEST", "latest")):
        with pytest.raises(UnknownModel) as caught:
            table().find(wanted)
        assert near in caught.value.near
        assert near in caught.value.hint
    with pytest.raises(UnknownModel, match="gpt-4") as caught:
        table().find("gpt-4")
    assert not caught.value.near
    assert "base, view" in caught.value.hint


def test_before_the_first_merge_view_and_latest_say_what_to_do() -> None:
    for wanted in ("latest", "view"):
        with pytest.raises(UnknownModel) as caught:
            Names(base=BASE).find(wanted)
        assert "ask for base" in caught.value.hint


def test_names_of_members_tell_apart_those_who_chose_the_same() -> None:
    ids = [digest(bytes([n])) for n in range(5)]
    chosen = dict(zip(ids, ["Clinic North", "twin", "twin", "", "deadbeef00"], strict=True))
    names = member_names(chosen)
    assert names[ids[0]] == "member/Clinic-North"
    assert names[ids[1]] == f"member/{ids[1][:12]}"
    assert names[ids[2]] == f"member/{ids[2][:12]}"
    assert names[ids[3]] == f"member/{ids[3][:12]}"
    assert names[ids[4]] == f"member/{ids[4][:12]}", "a name that reads like a digest"
    assert len(set(names.values())) == 5


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["view", "r1", "r2", "m", "-r1", "-m"]), st.integers(0, 5)), max_size=40))
def test_every_digest_leads_to_at_most_one_version_after_any_history(steps: list[tuple[str, int]]) -> None:
    names, last = Names(base=BASE), dict[str, ServedModel]()
    for what, seed in steps:
        match what:
            case "view":
                last["view"] = version("view", seed)
                names = names.with_view(last["view"])
            case "m":
                last["member/x"] = version("member/x", seed)
                names = names.with_member(last["member/x"])
            case "-m":
                last.pop("member/x", None)
                names = names.without_member("member/x")
            case "-r1":
                last.pop("release-1", None)
                names = names.without_release(1)
            case _:
                number = int(what[1])
                last[f"release-{number}"] = release(number, seed)
                names = names.with_release(last[f"release-{number}"])
        for name, model in last.items():
            assert names.find(name) == names.find(model.digest) == names.find(f"{name}@{model.digest}") == model
        assert len(names.old) <= KEPT
        kept = [(model.name, model.digest) for model in names.old]
        assert len(kept) == len(set(kept))
        assert not {(model.name, model.digest) for model in names.listed()} & set(kept)
        for model in names.old:
            assert names.find(f"{model.name}@{model.digest}") == model
