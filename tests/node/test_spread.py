"""The swarm in simulated time: what the node's own sync promises as a collective grows, and that a seed gives one trace."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from ledger import checkpoint
from ledger.errors import BadChain, ForkSeen
from node import cli
from node.errors import ConfigError
from node.errors_network import PeerUnreachable, StreamEnded
from node.simulation import spread, spread_config, virtual
from node.simulation.ether import Ether, Medium
from node.simulation.feeds import Archive
from node.simulation.gossip import GossipRules
from node.simulation.heads import HeadedStore, Roots
from node.simulation.spread_config import SpreadConfig
from node.simulation.spread_node import everyone
from node.simulation.virtual import NothingWillHappen
from node.syncing.neighbours import LIMIT, Neighbours
from protocol.errors import BadSignature
from protocol.ids import CollectiveId, MemberId, PeerId, digest
from protocol.keys import SigningKey, member_id

SHIPPED = Path(__file__).parents[2] / "configs" / "simulation-swarm.toml"
COLLECTIVE = CollectiveId(digest(b"spread"))
MEMBERS = [MemberId(digest(f"member {n}".encode())) for n in range(300)]


def wanted(**sections: Any) -> SpreadConfig:
    """A small swarm."""
    whole: dict[str, Any] = {"swarm": {"sizes": [5], "topologies": ["neighbours"], "burst": 4, "idle_s": 6.0}}
    for name, values in sections.items():
        whole[name] = {**whole.get(name, {}), **values}
    return SpreadConfig.model_validate(whole)


def ran(**sections: Any) -> dict[str, Any]:
    """The report of one; what depends on the machine is left out."""
    made = spread.simulate(wanted(**sections))
    del made["cost"]
    return made


# -- time ------------------------------------------------------------------------------------------------------------
def test_simulated_time_jumps_and_threads_run_in_order() -> None:
    async def main() -> tuple[float, list[str]]:
        said = []

        async def later(seconds: float, text: str) -> None:
            await asyncio.sleep(seconds)
            said.append(await asyncio.to_thread(lambda: text))

        async with asyncio.TaskGroup() as jobs:
            for seconds, text in ((3600.0, "c"), (0.5, "a"), (0.5, "b")):
                jobs.create_task(later(seconds, text))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(10):
                await asyncio.Event().wait()
        return asyncio.get_running_loop().time(), said

    assert virtual.run(main()) == (3610.0, ["a", "b", "c"])


def test_a_simulation_in_which_nothing_will_happen_says_so_and_does_not_hang() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(NothingWillHappen, match="every simulated task waits"):
        virtual.run(main())


# -- the network -----------------------------------------------------------------------------------------------------
def in_ether(main: Any, count: int = 2, **medium: Any) -> Any:
    async def inside() -> Any:
        ether = Ether(Medium(**medium), GossipRules(), random.Random(1))
        return await main(*(ether.port(PeerId(f"peer{n}")) for n in range(count)))

    made: Coroutine[Any, Any, Any] = inside()
    return virtual.run(made)


def test_streams_arrive_whole_in_order_and_every_byte_is_counted_at_its_sender() -> None:
    async def main(one: Any, two: Any) -> None:
        async def echo(stream: Any) -> None:
            while True:
                await stream.write(await stream.read(3))

        two.add_handler("/echo", echo)
        async with one.open(two.peer, "/echo") as stream:
            for text in (b"abc", b"def"):
                await stream.write(text)
            assert await stream.read(6) == b"abcdef"
        assert one.peers() == {two.peer}
        assert one.sent["/echo"] == two.sent["/echo"] == 160 + 2 * 63
        with pytest.raises(PeerUnreachable):
            async with one.open(two.peer, "/nothing"):
                pass

    in_ether(main, loss=0.2)


def test_a_peer_that_goes_away_ends_its_streams_and_connections() -> None:
    async def main(one: Any, two: Any) -> None:
        two.add_handler("/silent", lambda stream: stream.read(1))
        async with one.open(two.peer, "/silent") as stream:
            two.leave()
            with pytest.raises(StreamEnded):
                await stream.read(1)
        assert one.peers() == frozenset()
        with pytest.raises(PeerUnreachable):
            async with one.open(two.peer, "/silent"):
                pass

    in_ether(main)


def test_an_announcement_reaches_everybody_once_over_lossy_links() -> None:
    async def main(*ports: Any) -> None:
        heard: list[bytes] = []
        for at, port in enumerate(ports):
            port.subscribe("topic", heard.append)
            port.want(other.peer for other in (ports[at - 1], ports[at - 3]))
        await asyncio.sleep(5)
        assert await ports[0].publish("topic", b"news")
        await asyncio.sleep(20)
        assert heard == [b"news"] * (len(ports) - 1)

    in_ether(main, count=12, loss=0.2)


# -- heads -----------------------------------------------------------------------------------------------------------
def test_the_simulated_store_takes_no_head_that_is_not_signed_or_has_another_root() -> None:
    all_ = everyone(2, 1)
    one, two = all_.identities
    store = HeadedStore(Archive(), Roots())
    (head,) = all_.held.heads(all_.collective, one.member)
    records = all_.held.records(all_.collective, one.member)
    with pytest.raises(BadSignature):
        store.append_foreign(all_.collective, one.member, records, head.note[:-9] + b"AAAAAAA=\n")
    with pytest.raises(BadChain):
        store.append_foreign(all_.collective, two.member, [], head.note)
    assert store.append_foreign(all_.collective, one.member, records, head.note) == records
    assert store.head(all_.collective, one.member).root == head.root  # type: ignore[union-attr]
    lie = checkpoint.make(one.key, all_.collective, one.member, 1, digest(b"another root"))
    with pytest.raises(ForkSeen):
        store.append_foreign(all_.collective, one.member, [], lie.note)
    assert [fork.member for fork in store.forks(all_.collective)] == [one.member]


# -- neighbours ------------------------------------------------------------------------------------------------------
def chosen(members: list[MemberId], seed: int = 1) -> dict[MemberId, frozenset[MemberId]]:
    return {m: Neighbours(COLLECTIVE, m, random.Random(f"{seed}/{m}")).choose(members) for m in members}


def test_few_members_keep_connections_to_everybody_and_many_to_some() -> None:
    few = MEMBERS[: LIMIT + 1]
    assert all(wanted == set(few) - {m} for m, wanted in chosen(few).items())
    many = chosen(MEMBERS)
    assert max(map(len, many.values())) <= LIMIT
    linked = {frozenset((a, b)) for a, wanted in many.items() for b in wanted}
    assert 2 * len(linked) / len(MEMBERS) <= LIMIT + 8


def test_from_every_member_pages_come_down_to_every_other_over_few_steps() -> None:
    many = chosen(MEMBERS)
    links: dict[MemberId, set[MemberId]] = {m: set(wanted) for m, wanted in many.items()}
    for member, theirs in many.items():
        for other in theirs:
            links[other].add(member)
    ring = Neighbours(COLLECTIVE, MEMBERS[0], random.Random(1))
    longest = 0
    for author in MEMBERS[:5]:
        for member in MEMBERS:
            at, steps = member, 0
            while at != author:
                nearest = min(links[at], key=lambda m: ring.nearness(author, m))
                assert nearest == author or ring.nearness(author, nearest) < ring.nearness(author, at)
                at, steps = nearest, steps + 1
            longest = max(longest, steps)
    assert longest <= 9  # log2 300 = 8.2


def test_drawn_neighbours_stay_while_their_members_do() -> None:
    mine = Neighbours(COLLECTIVE, MEMBERS[0], random.Random(3))
    before = mine.choose(MEMBERS)
    assert mine.choose(MEMBERS) == before
    gone = next(iter(before))
    after = mine.choose([m for m in MEMBERS if m != gone])
    assert gone not in after
    assert len(before & after) >= len(before) // 2


# -- the whole -------------------------------------------------------------------------------------------------------
def test_one_seed_gives_one_trace_in_every_process_and_another_seed_another() -> None:
    code = (
        "import json, sys; from node.simulation import spread, spread_config\n"
        "made = spread.simulate(spread_config.SpreadConfig.model_validate(json.loads(sys.argv[1])))\n"
        "print(made['swarms'][0]['trace'])"
    )
    config = json.dumps(wanted(network={"loss": 0.05}).model_dump(mode="json"))
    ordered = {"PYTHONHASHSEED": "1"}  # sets have another order there than here
    there = subprocess.run(
        [sys.executable, "-c", code, config], capture_output=True, text=True, check=True, env=ordered
    )
    here = ran(network={"loss": 0.05})["swarms"][0]["trace"]
    assert there.stdout.strip() == here
    assert ran(network={"loss": 0.05}, swarm={"seed": 2})["swarms"][0]["trace"] != here


def test_every_entry_reaches_everybody_in_every_topology_and_a_newcomer_catches_up() -> None:
    made = ran(swarm={"sizes": [7], "topologies": ["neighbours", "ring", "full"]}, network={"loss": 0.05})
    assert [swarm["topology"] for swarm in made["swarms"]] == ["neighbours", "ring", "full"]
    for swarm in made["swarms"]:
        assert swarm["one"]["missing"] == swarm["burst"]["missing"] == 0
        assert swarm["join"]["whole"]
        assert swarm["streams_turned_away"] == 0
    ring = made["swarms"][1]
    assert ring["connections"]["max"] == 2


def test_round_a_ring_an_entry_runs_as_fast_as_the_links_though_everybody_asks_before_the_neighbour_has_it() -> None:
    (ring,) = ran(swarm={"sizes": [24], "topologies": ["ring"], "burst": 4, "idle_s": 2.0, "joins": False})["swarms"]
    hops = ring["one"]["page_hops"]["max"]
    assert hops >= 12
    for phase in ("one", "burst"):
        assert ring[phase]["seconds"]["all"] < 0.2 * hops + 1  # a question and its answer are 0.12 s at most
        assert ring[phase]["spent"]["messages_by_kind"]["/fishernet/feed/1"] < 12 * ring[phase]["entries"]


@pytest.fixture(scope="module")
def grown() -> tuple[dict[str, Any], dict[str, Any]]:
    """A small swarm and one of three times as many."""
    small, large = ran(swarm={"sizes": [12, 36], "burst": 24, "idle_s": 15.0})["swarms"]
    return small, large


def test_what_one_neighbour_has_told_is_not_told_again_by_each_of_the_others(
    grown: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    for swarm in grown:
        before, after = (swarm[phase]["bytes_by_kind"]["/fishernet/heads/2"] for phase in ("idle", "after"))
        assert after - before < 24 * 420  # less than the heads of the burst, told once


def test_a_newcomer_is_told_the_heads_of_all_by_a_few_and_not_by_all_its_neighbours(
    grown: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    join, members = grown[1]["join"], grown[1]["members"]
    assert join["whole"]
    assert join["connections"] > 8
    assert join["bytes_got"]["/fishernet/heads/2"] < 5 * members * 420


def test_members_repeat_their_heads_the_seldomer_the_more_they_are(
    grown: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    small, large = (swarm["idle"]["messages_by_kind"]["announce"] for swarm in grown)
    assert 0 < large < 2 * small  # of three times as many


@pytest.mark.slow
def test_what_a_node_sends_grows_like_the_logarithm_of_its_collective_at_most() -> None:
    made = ran(swarm={"sizes": [32, 256], "burst": 16, "idle_s": 20.0, "joins": False})
    small, large = made["swarms"]
    assert large["idle"]["bytes_per_node"] <= 1.5 * small["idle"]["bytes_per_node"]
    assert (
        large["burst"]["spent"]["bytes_per_node"] <= 1.7 * small["burst"]["spent"]["bytes_per_node"]
    )  # log 256 / log 32 = 1.6
    assert large["burst"]["page_hops"]["max"] <= 9
    assert large["burst"]["announcement_hops"]["mean"] <= large["burst"]["theory"]["hops_max"]
    assert large["connections"]["max"] <= 40


# -- the command -----------------------------------------------------------------------------------------------------
def test_the_command_simulates_a_swarm_and_draws_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "swarm.toml"
    file.write_text('[swarm]\nsizes = [3, 4]\ntopologies = ["neighbours"]\nburst = 2\nidle_s = 2.0\n')
    assert cli.run(["simulate", str(file), "--out", str(tmp_path / "out"), "--json", "--seed", "7"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == json.loads((tmp_path / "out" / "simulation.json").read_text())
    assert said["config"]["swarm"]["seed"] == 7
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "hops of an entry" in (tmp_path / "out" / "curves.svg").read_text()
    assert cli.run(["simulate", str(file)]) == 0
    assert "neighbours" in capsys.readouterr().out


def test_the_shipped_example_is_read_and_what_is_wrong_in_one_is_named(tmp_path: Path) -> None:
    assert spread_config.is_spread(SHIPPED)
    assert max(spread_config.load(SHIPPED).swarm.sizes) == 1000

    def refused(text: str) -> str:
        with pytest.raises(ConfigError) as caught:
            spread_config.parse(text, source=Path("s.toml"))
        return str(caught.value)

    assert "[swarm] burts is unknown, did you mean burst?" in refused("[swarm]\nburts = 3")
    assert "[gosip] is unknown, did you mean gossip?" in refused("[swarm]\n[gosip]\ndegree = 3")
    assert "the smaller first" in refused("[network]\ndelay_ms = [9, 3]")
    assert "[swarm] sizes" in refused("[swarm]\nsizes = [2]")


def test_members_keys_come_from_the_seed_alone() -> None:
    assert everyone(3, 4).members == everyone(3, 4).members != everyone(3, 5).members
    assert member_id(SigningKey(bytes(32))) not in everyone(3, 4).members
