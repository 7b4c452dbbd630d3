"""What the operator does not let out stays: on the packed bytes, whatever the run says, and what was learnt is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keeper import Desk
from peers import COLLECTIVE, Node, homes, live, swarm_of
from seats import Table

from contrib.adapters import Layout
from ledger import events
from ledger.access import egress
from ledger.access.egress import Accept, Facts, Policy, Reject, examine, parse
from ledger.errors import BadEvent
from node import config, sections
from node.data.egress import Egress, modules, policy_of
from node.errors import EgressStopped
from node.errors_network import PeerRefused
from node.syncing.exchange import Asker
from protocol import binding
from protocol.canon import decode, encode
from protocol.ids import MemberId, digest

FACTS = Facts(size=100, norm_micro=50, epsilon_micro=7, modules=("a.q_proj", "b.v_proj"), purposes=("care",))
LAYOUT = Layout(modules=(("a.q_proj", 8, 10), ("b.v_proj", 8, 22)), coordinates=64)  # rank 2
TEXTS = st.none() | st.lists(st.from_regex(r"[a-z*.]{1,6}", fullmatch=True), unique=True).map(sorted).map(tuple)
NUMBER = st.none() | st.integers(0, 2**53 - 1)


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    found = Table(tmp_path)
    yield found
    found.close()


# -- the decision ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("policy", "code"),
    [
        (Policy(), None),
        (
            Policy(
                max_bytes=100, max_norm_micro=50, max_epsilon_micro=7, modules=("*.q_proj", "b.*"), purposes=("care",)
            ),
            None,
        ),
        (Policy(max_bytes=99), "bytes"),
        (Policy(max_norm_micro=49), "norm"),
        (Policy(max_epsilon_micro=6), "epsilon"),
        (Policy(modules=("*.q_proj",)), "modules"),
        (Policy(purposes=("research",)), "purpose"),
        (Policy(members=()), None),
    ],
    ids=str,
)
def test_each_limit_holds_by_itself(policy: Policy, code: str | None) -> None:
    answer = examine(policy, FACTS)
    assert (answer.code if isinstance(answer, Reject) else None) == code


def test_a_fact_that_a_limit_needs_and_nobody_states_is_refused() -> None:
    unstated = replace(FACTS, epsilon_micro=None, modules=None)
    assert examine(Policy(), unstated) == Accept()
    for policy, code in ((Policy(max_epsilon_micro=10**9), "epsilon"), (Policy(modules=("*",)), "modules")):
        answer = examine(policy, unstated)
        assert isinstance(answer, Reject)
        assert answer.code == code


@given(
    st.builds(
        Policy,
        max_bytes=NUMBER,
        max_norm_micro=NUMBER,
        max_epsilon_micro=NUMBER,
        modules=TEXTS,
        purposes=TEXTS,
        members=st.none()
        | st.lists(st.binary(max_size=2).map(digest).map(MemberId), unique=True).map(sorted).map(tuple),
    )
)
def test_a_policy_survives_its_bytes(policy: Policy) -> None:
    value = decode(encode(policy.to_json(), max_bytes=1 << 20), max_bytes=1 << 20)
    assert isinstance(value, dict)
    assert parse(value) == policy
    assert parse(value).digest == policy.digest


@pytest.mark.parametrize(
    "wrong",
    [{"more": 1}, {"max_bytes": -1}, {"max_bytes": True}, {"modules": ["b", "a"]}, {"modules": "a"}, {"purposes": [1]}],
    ids=str,
)
def test_another_form_of_a_policy_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadEvent):
        parse({**Policy().to_json(), **wrong})


# -- finding the facts ---------------------------------------------------------------------------------------------------
def test_touched_modules_are_found_by_the_layout_of_the_coordinates() -> None:
    assert modules(LAYOUT, np.array([0, 19]), 64) == ("a.q_proj",)
    assert modules(LAYOUT, np.array([19, 20, 63]), 64) == ("a.q_proj", "b.v_proj")
    assert modules(LAYOUT, np.array([20]), 64) == ("b.v_proj",)
    assert modules(LAYOUT, np.array([], dtype=np.uint32), 64) == ()
    assert modules(LAYOUT, np.array([0]), 32) is None


def test_the_section_of_the_configuration_becomes_the_policy() -> None:
    assert policy_of(sections.Egress()) == egress.DEFAULT
    text = f"""
[egress]
max_norm = 2.5
max_bytes = 1000
max_epsilon = 0.5
modules = ["*.v_proj", "*.q_proj"]
purposes = ["care"]
members = ["{digest(b"m")}"]
"""
    found = policy_of(config.parse(text, source=Path("node.toml")).egress)
    assert found == Policy(
        max_bytes=1000,
        max_norm_micro=2_500_000,
        max_epsilon_micro=500_000,
        modules=("*.q_proj", "*.v_proj"),
        purposes=("care",),
        members=(MemberId(digest(b"m")),),
    )


# -- publishing ----------------------------------------------------------------------------------------------------------
def guarded(table: Table, policy: Policy) -> Desk:
    desk = Desk(table)
    watch(desk, policy)
    return desk


def watch(desk: Desk, policy: Policy) -> None:
    """Put another policy into force, as a restart with another configuration does."""
    desk.egress.__init__(desk.seat, policy, layout=lambda: LAYOUT)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        (Policy(max_bytes=200), "bytes"),
        (Policy(max_norm_micro=1000), "norm"),
        (Policy(max_epsilon_micro=10**9), "epsilon"),
        (Policy(modules=("a.q_proj",)), "modules"),
        (Policy(purposes=("care",)), "purpose"),
    ],
    ids=str,
)
def test_a_run_that_the_policy_keeps_here_is_an_event_and_nothing_leaves(
    table: Table, policy: Policy, code: str
) -> None:
    desk = guarded(table, policy)
    with pytest.raises(EgressStopped) as stopped:
        desk.run()
    assert stopped.value.reason == code
    (refused,) = desk.said(events.EgressRefused)
    assert (refused.code, refused.policy) == (code, policy.digest)
    assert refused.run == desk.said(events.DataUsed)[0].run
    assert desk.said(events.Published) == []
    assert list(desk.ada.blobs.digests()) == []
    assert desk.rounds.unpublished() is None


def test_what_was_learnt_stays_and_leaves_when_the_policy_lets_it(table: Table) -> None:
    desk = guarded(table, Policy(max_bytes=100))
    with pytest.raises(EgressStopped):
        desk.run()
    watch(desk, Policy())
    desk.pupil.step = 0.0
    desk.run()
    (published,) = desk.seat.fold.contributions[desk.seat.me]
    assert published.number == 1
    assert np.linalg.norm(desk.sent()) > 1.0, "the residual of the run that was kept back is sent by the next one"


def test_a_run_is_not_repeated_by_itself_under_the_policy_that_stopped_it(table: Table) -> None:
    desk = guarded(table, Policy(max_bytes=100))
    with pytest.raises(EgressStopped):
        desk.run()
    assert not desk.rounds.may_start(sections.Train())
    watch(desk, Policy())
    assert desk.rounds.may_start(sections.Train())


def test_the_run_that_waited_over_a_restart_meets_the_policy_too(table: Table) -> None:
    desk = guarded(table, Policy(max_bytes=100))
    ran = asyncio.run(desk.rounds.train(sections.Train(), lambda _event: None))
    assert desk.rounds.unpublished() == ran
    with pytest.raises(EgressStopped):
        desk.run()
    assert desk.rounds.unpublished() is None


# -- the policy itself is in the feed --------------------------------------------------------------------------------------
def test_attack_67_a_policy_is_in_the_feed_before_anything_is_decided_under_it(table: Table) -> None:
    desk = guarded(table, Policy(max_bytes=10**6))
    desk.run()
    watch(desk, Policy(max_bytes=10**6 + 1))
    desk.run()
    watch(desk, Policy())
    desk.run()
    in_force, seen = egress.DEFAULT.digest, []
    for record in desk.ada.store.records(desk.seat.collective, desk.ada.id):
        assert record.body is not None
        kind, body = record.entry.header.type, record.body.value()
        if kind == events.EgressSet.TYPE:
            in_force = parse(events.parse(kind, body).policy).digest  # type: ignore[union-attr]
        if kind == events.AccessDecided.TYPE:
            assert body["policy"] == in_force
            seen.append(in_force)
    assert len(set(seen)) == 3
    assert len(desk.said(events.EgressSet)) == 3


def test_a_policy_that_did_not_change_is_written_once(table: Table) -> None:
    desk = guarded(table, Policy(max_bytes=10**6))
    desk.run()
    watch(desk, Policy(max_bytes=10**6))
    desk.run()
    assert len(desk.said(events.EgressSet)) == 1
    other = Egress(table["bob"].seat, egress.DEFAULT)
    assert other.in_force() == egress.DEFAULT.digest
    assert not table["bob"].seat.book.policies, "the policy that every feed begins with needs no event"


# -- serving ---------------------------------------------------------------------------------------------------------------
def test_only_named_members_fetch_blobs_and_each_refusal_is_an_event_once(table: Table) -> None:
    bob, cyd = table["bob"].id, table["cyd"].id
    desk = guarded(table, Policy(members=(bob,)))
    assert desk.egress.serves(bob)
    assert [desk.egress.serves(cyd), desk.egress.serves(cyd)] == [False, False]
    (refused,) = desk.said(events.EgressRefused)
    assert (refused.run, refused.code) == ("", "member")
    assert desk.egress.serves(cyd) is False
    assert not desk.egress.stopped, "a member that gets no blobs does not stop runs"


@live
async def test_over_the_network_a_member_that_is_not_named_gets_the_feed_and_no_blob(tmp_path: Path) -> None:
    one, two, three = homes(tmp_path, "abc")
    policy = Policy(members=(two.member,))
    async with Node(one, [one, two, three], serves=lambda member: egress.may_fetch(policy, member)) as a:
        a.append(n=0)
        name = a.blobs.put(b"a contribution")
        for home, gets in ((two, True), (three, False)):
            async with swarm_of(home) as other:
                asker = Asker(other.swarm, COLLECTIVE, binding.verify(home.binding))
                peer = await other.swarm.dial(a.address)
                assert len((await asker.page(peer, one.member, 0)).records) == 1
                if gets:
                    async with asker.blob(peer, name, 0) as (size, stream):
                        assert await stream.read(size) == b"a contribution"
                else:
                    with pytest.raises(PeerRefused, match="kept-back"):
                        async with asker.blob(peer, name, 0):
                            pass
