"""What a simulation of the swarm alone is: sizes, topologies, links, gossip. The field descriptions are the manual.

The node's own sync runs in every simulated node; there are feeds and heads, but no votes, no training and no model. A key that
does not exist is an error that names the nearest one. Law: the same file and seed give the same trace.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from node.config import nearest, read_text
from node.errors import ConfigError
from node.syncing.feeds import MAX_FEEDS

_LIST: Final = Field(strict=False)  # TOML arrays arrive as lists, and we keep tuples
Topology = Literal["neighbours", "ring", "full"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Swarm(_Section):
    """How many nodes, in which shapes, and what is measured."""

    sizes: Annotated[tuple[Annotated[int, Field(ge=3, le=MAX_FEEDS)], ...], _LIST, Field(min_length=1)] = Field(
        default=(16, 64, 256, 1000), description="Members; each size is a swarm of its own."
    )
    topologies: Annotated[tuple[Topology, ...], _LIST, Field(min_length=1)] = Field(
        default=("neighbours", "ring", "full"),
        description="neighbours = as the node chooses; ring = the next one on each side; full = everybody to everybody.",
    )
    full_up_to: int = Field(
        default=256, ge=3, description="No larger full mesh is simulated: it has N(N-1)/2 connections."
    )
    ring_up_to: int = Field(default=256, ge=3, description="No larger ring is simulated: news needs N/2 hops.")
    seed: int = Field(default=1, ge=0, lt=2**31, description="Of everything that is drawn.")
    burst: int = Field(
        default=64, ge=1, description="Entries of the burst, each of another member where there are so many."
    )
    burst_s: float = Field(default=2.0, ge=0, description="Simulated seconds over which they are written.")
    idle_s: float = Field(default=60.0, gt=0, description="Simulated seconds without news whose cost is measured.")
    limit_s: float = Field(
        default=600.0, gt=0, description="Simulated seconds after which a spread that has not ended is given up."
    )
    joins: bool = Field(default=True, description="At the end a node that holds nothing comes and catches up.")


class Network(_Section):
    """The simulated links."""

    delay_ms: Annotated[tuple[int, int], _LIST] = Field(
        default=(10, 60), description="One way; each message takes a time drawn between these."
    )
    uplink_kbit: float = Field(default=20_000.0, gt=0, description="What a node can send, in all.")
    loss: float = Field(default=0.0, ge=0, lt=0.5, description="Share of packets lost; streams send them again.")


class GossipSection(_Section):
    """GossipSub, with the defaults of go-libp2p-pubsub."""

    degree: int = Field(default=6, ge=1, description="D: peers that a node passes each announcement on to.")
    low: int = Field(default=5, ge=1, description="Fewer are filled up to D.")
    high: int = Field(default=12, ge=1, description="More are cut down to D.")
    lazy: int = Field(default=6, ge=0, description="Peers outside the mesh that are told at a heartbeat what there is.")
    heartbeat_s: float = Field(default=1.0, gt=0, description="Its period.")


class SyncSection(_Section):
    """The node's sync."""

    heads_every_s: float = Field(default=5.0, gt=0, description="How often a node asks some peers for their heads.")


class SpreadConfig(_Section):
    """A whole simulation of the swarm."""

    swarm: Swarm = Swarm()
    network: Network = Network()
    gossip: GossipSection = GossipSection()
    sync: SyncSection = SyncSection()


def is_spread(path: Path) -> bool:
    """Whether a file describes a swarm alone (raises ConfigError: not readable, or not TOML)."""
    return "swarm" in _toml(read_text(path, "simulation"), path)


def load(path: Path) -> SpreadConfig:
    """Read and check the file (raises ConfigError; section and key are named)."""
    return parse(read_text(path, "simulation"), source=path)


def parse(text: str, *, source: Path) -> SpreadConfig:
    """Check `text`; `source` is only named in errors (raises ConfigError)."""
    try:
        found = SpreadConfig.model_validate(_toml(text, source))
    except ValidationError as e:
        raise ConfigError(f"couldn't use simulation {source}: " + "; ".join(map(_fault, e.errors()))) from None
    low, high = found.network.delay_ms
    if not 0 <= low <= high:
        raise ConfigError(f"couldn't use simulation {source}: [network] delay_ms is two numbers, the smaller first")
    return found


def seeded(config: SpreadConfig, seed: int) -> SpreadConfig:
    """The same simulation with another seed."""
    return config.model_copy(update={"swarm": config.swarm.model_copy(update={"seed": seed})})


def _toml(text: str, source: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"couldn't read simulation {source}: {e}") from None


def _fault(error: Any) -> str:
    names = [str(part) for part in error["loc"] if not isinstance(part, int)]
    section, key = names[0], names[1] if len(names) > 1 else ""
    where = f"[{section}] {key}".rstrip()
    if error["type"] == "extra_forbidden":
        kinds = {name: field.annotation for name, field in SpreadConfig.model_fields.items()}
        kind = kinds.get(section)
        known = list(getattr(kind, "model_fields", {})) if key else list(kinds)
        near = nearest(key or section, known)
        return f"{where} is unknown" + (f", did you mean {near}?" if near else f"; known: {', '.join(known)}")
    return f"{where}: {error['msg'][0].lower()}{error['msg'][1:]}"
