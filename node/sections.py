"""The sections and keys of `node.toml`, with the comment that explains each: the operator's manual.

The field descriptions are printed into every new node's file (`node.config.template`), so file and manual cannot part.
Values and checks only; which keys of a running node may change is said in `node.reloading`. Knows no file, home or daemon.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

AUTO: Final = "auto"
_HOST = r"/(?:ip4|ip6|dns|dns4|dns6)/[0-9A-Za-z.:%_-]+"
Listen = Annotated[str, StringConstraints(pattern=rf"^{_HOST}/tcp/\d{{1,5}}$")]
_ID = "[1-9A-HJ-NP-Za-km-z]{40,60}"
Relay = Annotated[str, StringConstraints(pattern=rf"^{_HOST}/tcp/\d{{1,5}}/p2p/{_ID}$")]
Peer = Annotated[str, StringConstraints(pattern=rf"^{_HOST}/tcp/\d{{1,5}}(?:/p2p/{_ID}/p2p-circuit)?/p2p/{_ID}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z][0-9A-Za-z ._-]{0,62}$")]
Code = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]{0,63}$")]
Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
FORMS: Final = {
    "name": "Clinic North: letters, digits, blanks, dots, dashes, at most 63",
    "collective": "64 lower-case hex digits, as `fishernet collective show` prints them",
    "listen": "/ip4/0.0.0.0/tcp/4242",
    "purpose": "model-improvement: small letters, digits, dots, dashes, at most 64",
    "purposes": "model-improvement: small letters, digits, dots, dashes, at most 64",
    "members": "64 lower-case hex digits, as `fishernet collective show` prints them",
    "announce": "/ip4/192.0.2.7/tcp/4242, as others dial it",
    "relays": "/ip4/192.0.2.7/tcp/4242/p2p/12D3Koo..., as `fishernet status` prints it at that node",
    "peers": "/ip4/192.0.2.7/tcp/4242/p2p/12D3Koo..., as `fishernet status` prints it at that node",
}
_LIST: Final = Field(strict=False)  # TOML arrays arrive as lists, and we keep tuples


class Section(BaseModel):
    """One table of the file: unknown keys are errors, values have their own type."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Node(Section):
    """Who this node is."""

    name: Name = Field(default="node", description="A name for people, shown to the other members.")
    collective: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")] = Field(
        default="",
        description="Id of the collective this node works in; `collective create` and `collective join` write it here.",
    )
    model: str = Field(
        default="",
        description='Base model by name or digest (see `fishernet model list`); "" = the one the charter names.',
    )


class Network(Section):
    """How other nodes reach this one."""

    listen: Annotated[tuple[Listen, ...], _LIST, Field(min_length=1)] = Field(
        default=("/ip4/0.0.0.0/tcp/4242",),
        description="Addresses to listen on. Keep the port: others remember it. 127.0.0.1 = this machine only.",
    )
    peers: Annotated[tuple[Peer, ...], _LIST] = Field(
        default=(),
        description="Members to dial first, as `fishernet status` prints it there: /ip4/192.0.2.7/tcp/4242/p2p/12D...",
    )
    announce: Annotated[tuple[Listen, ...], _LIST, Field(max_length=8)] = Field(
        default=(),
        description="Addresses to tell others instead of own ones, behind a router that forwards the port; [] = own ones.",
    )
    mdns: bool = Field(
        default=True,
        description="Find members on the local network by multicast DNS; shows peer id and port, never the collective.",
    )
    relays: Annotated[tuple[Relay, ...], _LIST, Field(max_length=8)] = Field(
        default=(),
        description="Nodes that connect members behind NAT, besides those that the charter names; addresses as in peers.",
    )
    serve_relay: bool = Field(
        default=False,
        description="Be such a node, for anybody who reaches this one: at most 256 nodes and 512 connections, 64 of one node.",
    )
    autonat: bool = Field(
        default=True,
        description="With relays: find out whether this node can be reached, and connect behind NAT directly (hole punching).",
    )
    reachability: Literal["auto", "public", "private"] = Field(
        default="auto",
        description='With relays: can others dial this node? "private" = keep a place at each relay; "auto" = find out.',
    )


class Train(Section):
    """What this node trains on and how long one run is."""

    datasets: Annotated[tuple[str, ...], _LIST] = Field(
        default=(), description="Data sets to train on (see `fishernet data list`); [] = all of them."
    )
    purpose: Code = Field(
        default="model-improvement",
        description="What rows are used for here; a grant must name it (see `fishernet grant list`).",
    )
    auto: bool = Field(
        default=True, description="Start a run by itself whenever there is something new to learn from or to."
    )
    rounds: int = Field(default=0, ge=0, description="Stop after this many runs of its own accord; 0 = never.")
    steps: Annotated[int, Field(ge=1, le=100_000)] | Literal["auto"] = Field(
        default=10,
        description='Optimizer steps of one run; many short runs learn more. "auto" = searched for once in an epoch.',
    )
    batch: int = Field(default=4, ge=1, le=4096, description="Sequences in one step.")
    length: int = Field(default=64, ge=8, le=131_072, description="Tokens in one sequence.")
    learning_rate: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] = Field(
        default=0.004,
        description='Peak learning rate of AdamW on the factor B; "auto" = searched for once in an epoch, on own training rows.',
    )
    early_stop: bool = Field(
        default=False,
        description='End a run when its loss on an eighth of the rows, kept out of it, stops falling; with "auto" always so.',
    )
    keep_moments: bool = Field(
        default=True,
        description="Go on with what Adam knew after the last run of the epoch (it stays on this node) instead of anew.",
    )
    warmup: int = Field(
        default=5, ge=0, description="Steps until the peak is reached, where Adam begins anew; at most half of a run."
    )
    fisher_sequences: int = Field(
        default=16,
        ge=0,
        le=4096,
        description="Private sequences that estimate which coordinates matter, 16 to 64; 0 = Adam's own estimate, for nothing.",
    )
    seed: int = Field(
        default=1, ge=0, lt=2**53, description="Order of the rows; the same seed and rows give the same run."
    )
    threads: int = Field(
        default=1, ge=1, le=1024, description="CPU threads of the trainer; 1 when nodes share a machine."
    )
    held_out_rows: int = Field(
        default=200,
        ge=1,
        description="Held-out rows measured for a verdict, at most; the charter names the least number.",
    )


class Serve(Section):
    """The OpenAI-style API for applications."""

    host: Annotated[str, StringConstraints(min_length=1)] = Field(
        default="127.0.0.1", description='Address of the API; "0.0.0.0" lets other machines in: make keys then.'
    )
    port: int = Field(
        default=8000, ge=0, le=65535, description="Port of the API; 0 = any free one (see `fishernet status`)."
    )
    api_keys: Annotated[tuple[Annotated[str, StringConstraints(min_length=8)], ...], _LIST] = Field(
        default=(),
        description="Bearer keys for everything; better: `fishernet key api add`. Without any none is asked for.",
    )
    preload: bool = Field(default=False, description="Load the model at start instead of at the first request.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Numbers of the served model: bfloat16 is about twice as fast; auto keeps what it is stored in.",
    )
    rows: int = Field(default=16, ge=1, le=1024, description="Answers written at the same time; more wait.")
    max_active: int = Field(default=128, ge=1, le=4096, description="Adapters that answers may use at the same time.")
    adapter_mib: int = Field(
        default=1024, ge=1, lt=2**31, description="MiB of memory for adapters; others are on disk."
    )
    experts: dict[str, str] = Field(
        default_factory=dict,
        description='What models are for, by which "auto" chooses: {"member/clinic" = "symptoms"}; "@FILE" is read from FILE.',
    )


class Egress(Section):
    """What may leave this node, whatever a run has made; what is kept back is an event, and stays learnt here."""

    max_bytes: int = Field(
        default=0, ge=0, lt=2**53, description="Bytes of one contribution; 0 = what the charter allows."
    )
    max_norm: float = Field(
        default=0, ge=0, le=1e6, description="Norm of one contribution's update; 0 = what the charter allows."
    )
    max_epsilon: float = Field(
        default=0,
        ge=0,
        le=1e6,
        description="Differential-privacy epsilon a contribution may spend; with one, an update without DP stays here; 0 = any.",
    )
    modules: Annotated[tuple[str, ...], _LIST, Field(max_length=256)] = Field(
        default=(),
        description='Modules of the base model an update may touch, * for any part of a name: ["*.q_proj"]; [] = all.',
    )
    purposes: Annotated[tuple[Code, ...], _LIST, Field(max_length=64)] = Field(
        default=(), description="Purposes whose results may leave; [] = any."
    )
    members: Annotated[tuple[Hex, ...], _LIST, Field(max_length=256)] = Field(
        default=(), description="Ids of the members that may fetch blobs from this node; [] = all members."
    )


class Ledger(Section):
    """What this node writes into its feed besides its work."""

    heartbeat_s: int = Field(
        default=600,
        ge=1,
        le=86_400,
        description="Write a sign of life when nothing else was written for so many seconds.",
    )
    post_quantum: bool = Field(
        default=False,
        description="Cosign other members' heads with ML-DSA-44 too: 2.4 KB more each, safe against quantum computers.",
    )


class Log(Section):
    """What the running node says of itself, and where."""

    format: Literal["text", "json"] = Field(
        default="text", description='"text" = event=NAME key=value ...; "json" = one object a line, for log collectors.'
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Say this and what is graver."
    )
    file: str = Field(
        default="", description='Write it into this file too (a path from the home); "" = to stderr only.'
    )
    max_mib: int = Field(default=16, ge=1, le=4096, description="MiB of the file before a new one is begun.")
    keep: int = Field(default=5, ge=1, le=100, description="Full files to keep beside it; the oldest goes.")


class Limits(Section):
    """What other nodes may cost this one: who asks for more waits, who sends what no honest node sends is banned."""

    streams: int = Field(
        default=512, ge=16, le=65_536, description="Streams of all peers open at once; of one member at most 32."
    )
    requests_per_s: int = Field(
        default=1000, ge=10, le=1_000_000, description="Requests for blobs a second from one member; for feeds a fifth."
    )
    member_mib_per_s: int = Field(
        default=512, ge=1, le=1_000_000, description="MiB a second sent to one member; what is over it is sent later."
    )
    stranger_requests_per_s: int = Field(
        default=10,
        ge=1,
        le=10_000,
        description="Requests a second from all nodes that are no members, together; they get our newest checkpoint.",
    )
    feed_entries_per_day: int = Field(
        default=21_600,
        ge=100,
        le=100_000_000,
        description="Entries a day taken from one member's feed, beside 20,000 at once; what is over it is taken later.",
    )
    feed_mib_per_day: int = Field(
        default=85, ge=1, le=1_000_000, description="MiB a day taken from one member's feed, beside 64 at once."
    )
    first_ban_s: int = Field(
        default=300,
        ge=1,
        le=604_800,
        description="Seconds of a peer's first ban; each further one lasts four times longer, up to a week.",
    )


class Storage(Section):
    """How much room blobs may take; what live releases, votes and pending contributions need is never dropped for it."""

    quota_mib: int = Field(
        default=0, ge=0, lt=2**31, description="MiB of blobs; above it, what is needed least goes. 0 = no limit."
    )
    keep_releases: int = Field(
        default=1,
        ge=1,
        le=100_000,
        description="Newest releases whose blobs are kept in any case, those of former epochs among them.",
    )
    history: bool = Field(
        default=True,
        description="Fetch what releases of former epochs were made of, for audits, while there is room for it.",
    )
    min_free_mib: int = Field(
        default=256,
        ge=0,
        lt=2**31,
        description="MiB of the disk to leave free: below it history is not fetched, and what may go goes.",
    )


class NodeConfig(Section):
    """A whole `node.toml`."""

    node: Node = Node()
    network: Network = Network()
    train: Train = Train()
    serve: Serve = Serve()
    egress: Egress = Egress()
    ledger: Ledger = Ledger()
    log: Log = Log()
    limits: Limits = Limits()
    storage: Storage = Storage()
