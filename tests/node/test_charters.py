"""From what a person types to a charter, and to changes of one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from paper import charter_of, key

from contrib import adapters, models
from contrib.adapters import AdapterSpec
from contrib.models import Model
from ledger import charter as charters
from ledger import charter_reading
from ledger.amending import amended
from ledger.charter import Charter, Member
from ledger.errors import BadCharter
from node.collective import charters as wishes
from node.errors import NotAllowed
from protocol.errors import Refused
from protocol.ids import peer_id
from protocol.keys import member_id

FOUNDER = Member(id=member_id(key("ada")), name="ada", role="contributor")
BOB, CYD = (member_id(key(n)) for n in ("bob", "cyd"))
CHARTER = charter_of(["ada", "bob", "cyd"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return models.add("tiny", tmp_path_factory.mktemp("cache"))


def after(charter: Charter, changes: list[dict[str, Any]]) -> Charter:
    for change in changes:
        charter = amended(charter, change)
    return charter


# -- a new collective --------------------------------------------------------------------------------------------------
def test_the_defaults_make_a_valid_charter_for_the_model(model: Model) -> None:
    charter = wishes.draft({"name": "three"}, model, FOUNDER)
    assert charter_reading.parse(charter.to_json()) == charter
    assert (charter.name, charter.base.digest, charter.members) == ("three", model.digest, (FOUNDER,))
    assert (charter.faults, charter.quorum, charter.epoch) == (0, 1, 0)
    assert (charter.update.density_ppm, charter.update.value_bits, charter.gate.held_out_min) == (200_000, 8, 200)
    spec = AdapterSpec(rank=16, alpha=16, targets=("q_proj", "v_proj"), seed=charter.adapter.seed)
    assert charter.adapter.coordinates == adapters.layout(model.path, spec).coordinates


@pytest.mark.parametrize("preset", sorted(wishes.PRESETS))
def test_a_preset_sets_density_and_bits_and_an_option_beside_it_wins(model: Model, preset: str) -> None:
    density, bits = wishes.PRESETS[preset]
    made = wishes.draft({"preset": preset}, model, FOUNDER).update
    assert (made.density_ppm, made.value_bits, made.block) == (density, bits, 16 if bits == 1 else 256)
    assert wishes.draft({"preset": preset, "density_ppm": 7}, model, FOUNDER).update.density_ppm == 7


def test_two_collectives_are_never_the_same(model: Model) -> None:
    one, two = (wishes.draft({"name": "same"}, model, FOUNDER) for _ in range(2))
    assert one.nonce != two.nonce
    assert one.adapter.seed != two.adapter.seed
    assert charters.collective_id(one) != charters.collective_id(two)


def test_every_option_is_followed(model: Model) -> None:
    args: dict[str, Any] = {
        "name": "all", "rank": 4, "alpha": 8, "targets": ["v_proj"], "recipe": "sqrt-mean/1", "density_ppm": 50_000,
        "value_bits": 4, "norm_cap_micro": 5, "tolerance_centinats": 7, "held_out_min": 9, "wait_for": 2,
        "patience_ms": 11, "timeout_ms": 500, "faults": 1, "members": [f"{BOB}:bob", f"{CYD}:cyd:endorser"],
    }  # fmt: skip
    made = wishes.draft(args, model, FOUNDER).to_json()
    flat: dict[str, Any] = {}
    for name, value in made.items():
        flat |= value if isinstance(value, dict) else {name: value}  # type: ignore[arg-type]
    assert {k: flat[k] for k in args if k not in {"members", "name"}} == {
        k: v for k, v in args.items() if k not in {"members", "name"}
    }
    assert {(m["name"], m["role"]) for m in made["members"]} == {  # type: ignore[union-attr, index, call-overload]
        ("ada", "contributor"), ("bob", "contributor"), ("cyd", "endorser")
    }  # fmt: skip


def test_alpha_is_the_rank_and_as_many_are_waited_for_as_contribute(model: Model) -> None:
    charter = wishes.draft({"rank": 4, "members": [f"{BOB}", f"{CYD}::auditor"]}, model, FOUNDER)
    assert (charter.adapter.alpha, charter.release.wait_for) == (4, 2)
    assert {m.name for m in charter.members} == {"ada", BOB[:12], CYD[:12]}


@pytest.mark.parametrize(
    "args",
    [
        {"recipe": "median/9"}, {"recipe": "outer-nesterov/1"}, {"recipe": "median/1:zeros=0"}, {"value_bits": 5},
        {"members": ["xyz"]}, {"members": [f"{BOB}:bob:owner"]},
        {"members": [f"{BOB}", f"{BOB}"]}, {"members": [FOUNDER.id]}, {"faults": 3}, {"targets": ["nothing"]},
        {"name": "x" * 65}, {"preset": "modem"}, {"rank": 0}, {"density_ppm": 0}, {"timeout_ms": 1},
    ],
)  # fmt: skip
def test_options_that_make_no_charter_are_refused(model: Model, args: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="couldn't"):
        wishes.draft(args, model, FOUNDER)


# -- changes -----------------------------------------------------------------------------------------------------------
def test_a_path_changes_one_rule_and_leaves_its_neighbours() -> None:
    found = wishes.changes(CHARTER, {"changes": {"gate.tolerance_centinats": 5, "gate.held_out_min": 8, "name": "new"}})
    assert [c["field"] for c in found] == ["gate", "name"]
    whole = after(CHARTER, found).to_json()
    gate: Any = CHARTER.to_json()["gate"]
    assert whole == {**CHARTER.to_json(), "name": "new", "gate": {**gate, "tolerance_centinats": 5, "held_out_min": 8}}


def test_a_recipe_may_come_with_its_parameters(model: Model) -> None:
    text = "guarded-mean/1:clip=1500,floor=3000"
    assert wishes.draft({"recipe": text}, model, FOUNDER).recipe == text
    assert after(CHARTER, wishes.changes(CHARTER, {"changes": {"recipe": text}})).recipe == text


def test_relays_are_a_rule_like_any_other_though_a_charter_may_have_none() -> None:
    relay = f"/dns4/relay.example/tcp/4242/p2p/{peer_id(bytes(key('relay').verify_key))}"
    named = after(CHARTER, wishes.changes(CHARTER, {"changes": {"relays": [relay]}}))
    assert named.relays == (relay,)
    assert after(named, wishes.changes(named, {"changes": {"relays": []}})) == CHARTER
    shown = {**named.to_json(), "id": "x", "height": 1, "quorum": 2, "epoch_id": "y"}
    assert after(CHARTER, wishes.changes(CHARTER, {"charter": shown})) == named
    assert wishes.changes(CHARTER, {"changes": {"relays": []}}) == []
    with pytest.raises(Refused):
        wishes.changes(CHARTER, {"changes": {"relays": ["/ip4/192.0.2.1/tcp/4242"]}})


def test_a_rule_that_stays_as_it_is_is_no_change() -> None:
    assert wishes.changes(CHARTER, {"changes": {"name": CHARTER.name, "gate.held_out_min": 0}}) == []
    assert wishes.changes(CHARTER, {}) == []
    assert wishes.changes(CHARTER, {"charter": CHARTER.to_json()}) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"colour": 1}, {"gate.colour": 1}, {"name.first": "x"}, {"nonce": "0" * 64}, {"epoch": 4}, {"v": 2},
        {"gate.held_out_min": -1}, {"recipe": "median/9"}, {"recipe": ["x"]}, {"recipe": "lorahub/1"}, {"adapter.rank": 8},
        {"faults": 7},
        {"adapter.targets": ["v_proj"]}, {"members": "bob"}, {"members": ["bob"]}, {"members": []},
    ],
)  # fmt: skip
def test_a_change_that_no_charter_could_follow_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises((NotAllowed, BadCharter), match="couldn't"):
        wishes.changes(CHARTER, {"changes": changes})


def test_another_rank_needs_the_number_of_coordinates() -> None:
    found = wishes.changes(CHARTER, {"changes": {"adapter.rank": 8, "adapter.coordinates": 256}})
    assert after(CHARTER, found).epoch == 1


def test_seats_are_taken_by_id() -> None:
    found = wishes.changes(CHARTER, {"remove": [BOB]})
    assert found == [{"op": "remove", "id": BOB}]
    with pytest.raises(BadCharter):
        wishes.changes(CHARTER, {"remove": [member_id(key("dan"))]})


def test_a_whole_charter_as_it_is_shown_becomes_the_changes_that_lead_to_it() -> None:
    dan = {"id": member_id(key("dan")), "name": "dan", "role": "auditor", "weight": 1}
    wanted: Any = json.loads(json.dumps(CHARTER.to_json()))
    wanted["name"] = "new"
    wanted["release"]["wait_for"] = 2
    wanted["members"] = [m for m in wanted["members"] if m["id"] != BOB] + [dan]
    next(m for m in wanted["members"] if m["id"] == CYD).update(role="endorser", weight=3)
    shown = {**wanted, "id": "ab" * 32, "height": 4, "quorum": 2, "epoch_id": "cd" * 32}
    found = wishes.changes(CHARTER, {"charter": shown})
    assert [c["op"] for c in found] == ["set", "set", "role", "add", "remove"]
    reached = after(CHARTER, found)
    assert {(m.name, m.role, m.weight) for m in reached.members} == {
        ("ada", "contributor", 1), ("cyd", "endorser", 3), ("dan", "auditor", 1)
    }  # fmt: skip
    assert (reached.name, reached.release.wait_for) == ("new", 2)


@pytest.mark.parametrize("whole", [[], "x", {"colour": 1}, {**CHARTER.to_json(), "nonce": "0" * 64}, {"members": 3}])
def test_a_file_that_is_no_charter_of_this_collective_is_refused_and_not_passed_over(whole: Any) -> None:
    with pytest.raises((NotAllowed, BadCharter), match="couldn't amend charter"):
        wishes.changes(CHARTER, {"charter": whole})


def test_an_invitation_names_a_seat() -> None:
    assert wishes.seat({"member": BOB}) == {"id": BOB, "name": BOB[:12], "role": "contributor", "weight": 1}
    assert wishes.seat({"member": BOB, "organisation": "North"})["organisation"] == "North"
    given = {"member": BOB, "name": "bob", "role": "auditor", "weight": 3}
    assert wishes.seat(given) == {"id": BOB, "name": "bob", "role": "auditor", "weight": 3}
