"""Whom a voter suspects and names: directions that everybody sees, harm that it measures itself."""

from __future__ import annotations

import numpy as np
import pytest

from contrib import influence
from contrib.influence import Bearing, Measured
from contrib.merging import Register
from protocol.ids import MemberId

P, FAULTS = 2000, 3
HONEST = [MemberId(f"h{n}") for n in range(7)]
HOSTILE = [MemberId(f"x{n}") for n in range(3)]
ALIGNED, AGAINST = Bearing(cosine=0.1, size=1.0), Bearing(cosine=-0.1, size=1.0)


def registers(hostile: float, *, common: float = 0.3, seed: int = 0) -> dict[MemberId, Register]:
    """Honest members share a direction in part; hostile ones send `hostile` times it and something of their own."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=P)
    found = {}
    for member in (*HONEST, *HOSTILE):
        factor = common if member in HONEST else hostile
        vector = factor * shared + rng.normal(size=P)
        found[member] = Register(units=(vector * 2**20).astype(np.int64), counts=np.ones(P, dtype=np.int32))
    return found


def test_who_points_against_the_others_is_suspect_and_the_others_are_not() -> None:
    found = influence.bearings(registers(-0.5), FAULTS)
    assert [m for m in sorted(found) if found[m].opposed] == HOSTILE
    assert set(influence.suspects(found, sorted(found), worse=False)) == set(HOSTILE)
    assert set(influence.suspects(found, sorted(found), worse=True)) == {*HONEST, *HOSTILE}


@pytest.mark.parametrize("seed", range(5))
def test_as_many_colluders_as_the_charter_bears_lend_each_other_no_good_bearing(seed: int) -> None:
    """All send the very same: they agree with each other and with nobody else."""
    made = registers(-0.5, seed=seed)
    made |= dict.fromkeys(HOSTILE, made[HOSTILE[0]])
    found = influence.bearings(made, FAULTS)
    assert all(found[m].opposed for m in HOSTILE)
    assert not any(found[m].opposed for m in HONEST)


@pytest.mark.parametrize("seed", range(5))
def test_colluders_cannot_spoil_an_honest_members_bearing(seed: int) -> None:
    """Each of them sends the opposite of one honest member's register."""
    made = registers(-0.5, seed=seed)
    victim = made[HONEST[0]]
    made |= dict.fromkeys(HOSTILE, Register(units=-3 * victim.units, counts=victim.counts.copy()))
    assert not influence.bearings(made, FAULTS)[HONEST[0]].opposed


def made_of(parts: dict[MemberId, np.ndarray]) -> dict[MemberId, Register]:
    counts = np.ones(P, dtype=np.int32)
    return {m: Register(units=(v * 2**20).astype(np.int64), counts=counts.copy()) for m, v in parts.items()}


def alike(*, shared: float, friends: float, seed: int) -> dict[MemberId, Register]:
    """Three of ten have a direction of their own in common, `shared` of everybody's, and some of what two honest members do."""
    rng = np.random.default_rng(seed)
    common, own = rng.normal(size=(2, P))
    parts = {member: 0.3 * common + rng.normal(size=P) for member in HONEST}
    near = parts[HONEST[0]] + parts[HONEST[1]]
    return made_of(parts | {member: shared * common + own + friends * near + rng.normal(size=P) for member in HOSTILE})


@pytest.mark.parametrize("seed", range(5))
def test_kin_who_point_against_most_others_do_not_hide_behind_two_that_they_are_near_to(seed: int) -> None:
    """Label flip: what it unlearns is most members' gain, and one or two are left indifferent."""
    found = influence.bearings(alike(shared=-0.5, friends=0.2, seed=seed), FAULTS, kin=True)
    assert [m for m in sorted(found) if found[m].opposed] == HOSTILE
    assert set(influence.suspects(found, sorted(found), worse=False)) == set(HOSTILE)


@pytest.mark.parametrize("seed", range(5))
def test_honest_kin_with_texts_foreign_to_all_others_are_not_even_suspects(seed: int) -> None:
    """At right angles to the rest and alike among themselves, as three with a language of their own."""
    found = influence.bearings(alike(shared=0.05, friends=0.0, seed=seed), FAULTS, kin=True)
    assert influence.suspects(found, sorted(found), worse=False) == ()


@pytest.mark.parametrize("seed", range(5))
def test_colluders_cannot_spoil_the_bearing_of_honest_kin(seed: int) -> None:
    """Three honest members are alike; the three that are hostile send the opposite of them."""
    rng = np.random.default_rng(seed)
    common, language = rng.normal(size=(2, P))
    parts = {m: 0.3 * common + rng.normal(size=P) + (language if n < 3 else 0.0) for n, m in enumerate(HONEST)}
    opposite = -3 * sum(parts[m] for m in HONEST[:3])
    found = influence.bearings(made_of(parts | dict.fromkeys(HOSTILE, opposite)), FAULTS, kin=True)
    assert not any(found[m].opposed for m in HONEST)


def test_an_oversized_member_is_measured_and_an_empty_or_lone_one_breaks_nothing() -> None:
    made = registers(0.3)
    big = made[HOSTILE[0]]
    made[HOSTILE[0]] = Register(units=5 * big.units, counts=big.counts.copy())
    made[HOSTILE[1]] = Register(units=0 * big.units, counts=0 * big.counts)
    found = influence.bearings(made, FAULTS)
    assert found[HOSTILE[0]].suspect
    assert not found[HOSTILE[0]].opposed
    assert found[HOSTILE[1]] == Bearing(cosine=0.0, size=0.0)
    assert influence.bearings({HONEST[0]: big}, 0)[HONEST[0]].cosine == 0.0
    assert influence.bearings({}, 0) == {}


def test_large_noise_agrees_with_nobody_and_is_named_for_little_harm_while_small_noise_and_large_agreement_are_not() -> (
    None
):
    made = registers(0.3)
    rng = np.random.default_rng(9)
    noise = (rng.normal(size=P) * 2**20).astype(np.int64)
    made[HOSTILE[0]] = Register(units=3 * noise, counts=np.ones(P, dtype=np.int32))
    made[HOSTILE[1]] = Register(units=noise, counts=np.ones(P, dtype=np.int32))
    made[HOSTILE[2]] = Register(units=3 * made[HOSTILE[2]].units, counts=np.ones(P, dtype=np.int32))
    found = influence.bearings(made, 0)
    mild = {
        m: Bearing(cosine=min(b.cosine, 0.0) if m in HOSTILE[:2] else b.cosine, size=b.size) for m, b in found.items()
    }
    assert [mild[m].estranged for m in HOSTILE] == [True, False, False]
    felt = measured(**{m: 3.48 for m in HOSTILE})
    assert influence.named(felt, mild, 0.02) == (HOSTILE[0],)


def measured(**without: float) -> Measured:
    """Base 4.0, candidate 3.5: half a nat was won."""
    return Measured(base=4.0, candidate=3.5, without={MemberId(m): loss for m, loss in without.items()})


def test_a_foreign_text_that_costs_a_voter_something_is_not_named() -> None:
    """Two centinats tolerated, and a quarter of the own gain borne: an honest minority stays."""
    found = {MemberId("foreign"): ALIGNED, MemberId("ruinous"): ALIGNED}
    assert influence.named(measured(foreign=3.42, ruinous=3.3), found, 0.02) == ("ruinous",)


def test_who_points_against_the_others_is_named_for_the_least_harm_and_for_none_it_is_not() -> None:
    found = dict.fromkeys(map(MemberId, ("harms", "helps", "nothing")), AGAINST)
    assert influence.named(measured(harms=3.48, helps=3.55, nothing=3.5), found, 0.02) == ("harms",)


def test_whose_last_contribution_was_refused_is_measured_and_named_for_the_least_harm() -> None:
    again = Bearing(cosine=0.1, size=1.0, doubted=True)
    found = {MemberId("again"): again, MemberId("foreign"): ALIGNED}
    assert influence.suspects(found, sorted(found), worse=False) == ("again",)
    assert influence.named(measured(again=3.489, foreign=3.489), found, 0.02) == ("again",)
    assert influence.named(measured(again=3.5), found, 0.02) == ()
    assert influence.worst(found, {MemberId("again"): ALIGNED})["again"].doubted


def test_colluders_whose_harm_shows_only_together_are_all_named_but_not_one_who_helps() -> None:
    found = dict.fromkeys(map(MemberId, ("x0", "x1", "friend")), AGAINST)
    alone = measured(x0=3.5, x1=3.499, friend=3.6)
    together = Measured(base=4.0, candidate=3.5, without=alone.without, jointly=3.3)
    assert influence.named(alone, found, 0.02) == ()
    assert set(influence.named(together, found, 0.02)) == {"x0", "x1"}


def test_a_candidate_that_is_ruined_does_not_hide_what_training_had_won() -> None:
    ruined = Measured(base=4.0, candidate=5.0, without={MemberId("x"): 3.5}, parent=3.6)
    assert ruined.gain == pytest.approx(0.5)
    assert Measured(base=4.0, candidate=5.0, without={}).gain == 0.0
