"""The seams of the node: what the sync, the rounds and the API need from the network, the engine and the trainer.

Protocols and the plain values that cross them; no behaviour, no imports of a library behind a port. Only bytes and peer
ids cross `Network`. Nothing else in the four packages declares a Protocol class.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from node.guarding.bans import Ban
from protocol.canon import Json
from protocol.ids import Digest, MemberId, PeerId


# -- network ---------------------------------------------------------------------------------------------------------
class Stream(Protocol):
    """One bidirectional byte stream to an authenticated peer; every call has a deadline inside."""

    @property
    def peer(self) -> PeerId:
        """The other end, as the transport authenticated it."""
        ...

    async def read(self, size: int, *, within_s: float | None = None) -> bytes:
        """Exactly `size` bytes. Raises StreamEnded when the stream ends or stalls before.

        Without `within_s` they may take as long as the link to this peer needs for so many.
        """
        ...

    async def write(self, data: bytes) -> None:
        """Send `data`; returns when the peer has taken enough of it. Raises StreamEnded."""
        ...


Handler: TypeAlias = Callable[[Stream], Awaitable[None]]
Announced: TypeAlias = Callable[[bytes], None]
PeersChanged: TypeAlias = Callable[[frozenset[PeerId]], None]


class Network(Protocol):
    """Moves bytes between peers. Announcements are hints that may be lost; streams are exact or fail."""

    @property
    def peer(self) -> PeerId:
        """Our own peer id."""
        ...

    def peers(self) -> frozenset[PeerId]:
        """Peers connected now."""
        ...

    def rate(self, peer: PeerId) -> float | None:
        """Bytes a second that one stream of `peer` brought lately; None: not measured."""
        ...

    def add_handler(self, protocol: str, handler: Handler) -> None:
        """Serve `protocol`, in this and every later life of the transport."""
        ...

    def subscribe(self, topic: str, announced: Announced) -> None:
        """Call `announced` with every announcement on `topic`."""
        ...

    def on_peers(self, changed: PeersChanged) -> None:
        """Call `changed` with the connected peers whenever the set changes."""
        ...

    async def publish(self, topic: str, data: bytes) -> bool:
        """Announce `data`; False when it was dropped because the transport is down."""
        ...

    def open(self, peer: PeerId, protocol: str) -> AbstractAsyncContextManager[Stream]:
        """Open a stream, closed at the end of the block. Raises PeerUnreachable."""
        ...

    def want(self, peers: Iterable[PeerId]) -> None:
        """Keep a connection to each of these, found by remembered addresses or by rendezvous."""
        ...


# -- engine ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """One version of one model, as a request binds to it. `name` is the canonical name, never an alias."""

    name: str  # "base" | "view" | "release-<height>" | the name of a member's adapter
    digest: Digest  # the release, for a view the view's model digest, for the base the base digest
    vector: Path | None  # float32 [coordinates] .npy; None: the bare base, or an adapter folder
    model: Digest | None = None  # digest of the vector; checked when it is loaded
    height: int | None = None
    created: int = 0  # seconds since 1970
    folder: Path | None = None  # a PEFT adapter folder instead of a vector
    spec: Mapping[str, Json] | None = None  # the adapter's shape when it is not the charter's
    owner: str = ""  # organisation or member: requests of one owner share its part of the machine
    base: Digest | None = None  # the base that an adapter was made for; None: the one that is served
    retires: int | None = None  # ms since 1970: withdrawn then, because something in it was forgotten
    successor: str = ""  # name@digest of the version to ask for instead of one that retires


@dataclass(frozen=True, slots=True, kw_only=True)
class Retiring:
    """A release with something in it that was forgotten: served until a time to whoever asks for it, or not any more."""

    height: int  # its number
    release: Digest
    until: int  # ms since 1970
    gone: bool
    successor: str  # name@digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """A conversation to answer."""

    messages: tuple[Mapping[str, str], ...]  # {"role": "system"|"user"|"assistant", "content": ...}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """A prompt that is tokenised already."""

    ids: tuple[int, ...]


Prompt: TypeAlias = str | Chat | Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to draw tokens. `temperature` 0 is greedy; answer i of `n` is drawn with `seed` + i."""

    max_tokens: int | None = None  # None: the engine's own limit, or what the context leaves; 0 only with `echo`
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    min_p: float = 0.0  # of the most likely token's probability
    seed: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1  # at most 8
    logprobs: int | None = None  # alternatives scored with each token, at most 20; 0: only the drawn one
    echo: bool = False  # the prompt's tokens come first, with scores when `logprobs` is given
    json: str | None = None  # "": any JSON object; else the text of a JSON schema the answer must follow


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScore:
    """One token of an answer or an echoed prompt, scored in nats by the model before temperature and cuts."""

    id: int
    text: str
    raw: bytes  # part of a character, where a token ends inside one
    logprob: float | None  # None: the first token of a prompt
    top: tuple[tuple[str, bytes, float], ...] = ()  # the likeliest: text, bytes, log-probability; best first


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Some text of answer `index`; `finish` on the last piece of an answer says why it ended."""

    text: str
    index: int = 0
    finish: str | None = None  # "stop" | "length" | "deadline"
    tokens: tuple[TokenScore, ...] = ()  # only when the request asked for `logprobs`


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """The end of a request: what it cost in tokens, over all its answers."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0  # prompt tokens that the prefix cache held


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Why a request for "auto" went to a model."""

    model: str
    reason: str  # "nearest" | "unclear" | "no-experts"
    why: str  # for people, one line of ASCII
    scores: tuple[tuple[str, float], ...] = ()  # every expert's cosine, best first
    prompt_tokens: int = 0  # embedded to decide


class Engine(Protocol):
    """Generates text with the base model and any number of adapter versions."""

    def models(self) -> Sequence[ServedModel]:
        """Every version that can be asked for now, base first."""
        ...

    def find(self, name: str) -> ServedModel:
        """What "base", "view", "latest", "release-<height>" or a digest stands for now. Raises UnknownModel."""
        ...

    async def set_view(self, view: Digest, vector: Path) -> None:
        """Serve this vector as "view" from now on; running requests end on the version they began with."""
        ...

    async def set_release(self, height: int, release: Digest, vector: Path, *, model: Digest | None = None) -> None:
        """Serve a release under its height and digest, and as "latest" when it is the highest."""
        ...

    def drop_release(self, height: int, *, forget: bool = False) -> None:
        """Serve a release no longer; requests under way end on it. `forget`: nor under its digest, nor any other old version."""
        ...

    def retire(self, releases: Sequence[Retiring]) -> None:
        """Say with answers of these that they end, or of those that are gone what to ask for; replaces what was said before."""
        ...

    async def set_member(self, name: str, vector: Path, *, model: Digest, owner: str = "") -> None:
        """Serve what one member contributed, alone, under the name "member/<name>"."""
        ...

    def drop_member(self, name: str) -> None:
        """Serve a member's adapter no longer; requests under way end on it."""
        ...

    def set_domains(self, domains: Mapping[str, str]) -> None:
        """What the data of each member's adapter is about, by name and as declared in the ledger; "auto" goes by it."""
        ...

    def generate(
        self,
        model: ServedModel,
        prompt: Prompt,
        sampling: Sampling,
        *,
        tenant: str = "",
        deadline: float | None = None,
    ) -> AsyncGenerator[Piece | Usage, None]:
        """Stream the answers; the last value is a Usage. Raises ContextTooLong, JobRefused, Busy, ChildDied.

        `tenant` is who asks, for fairness; `deadline`, in seconds from now, ends the answers with finish "deadline".
        """
        ...

    async def route(self, prompt: Prompt) -> tuple[ServedModel, Route]:
        """The version that "auto" means for this prompt, and why. Raises as `embed` does."""
        ...

    async def embed(self, inputs: Sequence[Prompt]) -> tuple[npt.NDArray[np.float32], Usage]:
        """[inputs, hidden]: mean of the base's last hidden states, L2-normalised. Raises as `generate` does."""
        ...

    async def stats(self) -> Mapping[str, Json]:
        """Counters and levels of the engine, flat but for `per_adapter`; empty while it is not loaded."""
        ...


# -- trainer ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """One local run: rows of `datasets` in `rows`, from the view in `view` (None: B = 0), results into `out`.

    `permits` maps each data set to the JSON of its `contrib.permit.Permit`; without one its rows are not read. `tuning` asks for
    a search and an early stop ({rate, steps, sequences}, see `contrib.tuning.Wish`); `moments` is what an earlier run left.
    """

    rows: Path
    datasets: tuple[str, ...]
    view: Path | None
    out: Path
    permits: Mapping[str, Mapping[str, Json]]
    settings: Mapping[str, int | float] = field(default_factory=dict)
    tuning: Mapping[str, bool | int] | None = None
    moments: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a run leaves: float32 [coordinates] vectors on disk, and what it cost.

    `chosen`: how it was trained, as the worker tells it (see `node.training.settings.told`); empty where nothing is chosen.
    """

    theta: Path
    fisher: Path
    tokens: int
    seconds: float
    moments: Path | None = None
    chosen: Mapping[str, Any] = field(default_factory=dict)


class Trainer(Protocol):
    """Trains and evaluates in another process; a crash costs one run."""

    async def load(self, model: Path, spec: Mapping[str, Json]) -> None:
        """Load the base model and attach the adapter shape."""
        ...

    async def train(self, job: TrainJob, on_event: Callable[[Mapping[str, Json]], None]) -> Trained:
        """Run one job; `on_event` gets each step. Raises Retry when the worker was lost."""
        ...

    async def libraries(self) -> Mapping[str, str]:
        """Versions of what computes the numbers, for the card."""
        ...

    async def evaluate(
        self,
        *,
        rows: Path,
        datasets: Sequence[str],
        permits: Mapping[str, Mapping[str, Json]],
        views: Mapping[str, Path | None],
        max_rows: int,
    ) -> Mapping[str, Mapping[str, Json]]:
        """Held-out loss of each view: name -> {nats, tokens, rows, accuracy}; `permits` as in a TrainJob."""
        ...


# -- the running node ------------------------------------------------------------------------------------------------
class Running(Protocol):
    """What a command may ask of the daemon it runs in."""

    def status(self) -> dict[str, Json]:
        """What only a running node knows: peers, processes, training, serving, last errors."""
        ...

    def asking(self) -> list[Json]:
        """Nodes without a seat that asked lately."""
        ...

    def use_data(self) -> None:
        """Measure on the data sets that are committed now."""
        ...

    async def train_now(self, steps: int | None) -> Json:
        """One training run, published."""
        ...

    async def measure(self) -> Json:
        """Our held-out losses, for the operator."""
        ...

    def reload(self) -> dict[str, Json]:
        """Go on with node.toml as it is now."""
        ...

    def add_peer(self, full: str) -> None:
        """Dial an address now and keep the connection."""
        ...

    async def drop_peer(self, peer: PeerId) -> None:
        """Hang up on a peer."""
        ...

    def ban(self, who: str, seconds: float | None, why: str) -> Ban:
        """Have nothing to do with a peer or member."""
        ...

    def unban(self, who: str) -> bool:
        """Lift a ban; whether there was one."""
        ...

    def bans(self) -> list[Ban]:
        """All bans that stand."""
        ...

    async def storage(self) -> dict[str, Json]:
        """What lies in the blob folder, why, and what would go."""
        ...

    async def prune(self, *, rare: bool, dry: bool) -> dict[str, Json]:
        """Drop blobs that may go."""
        ...

    def linked(self) -> dict[PeerId, MemberId | None]:
        """Connected peers and whom each speaks for."""
        ...

    @property
    def restart(self) -> Callable[[], None]:
        """End this daemon and start it anew, a moment later."""
        ...

    async def look(self) -> dict[str, Json]:
        """How this node stands, and what members see of it."""
        ...
