"""`node.toml`: what the operator may choose, with the comment that explains each key, and its checks.

The field descriptions below are the manual: `template` prints them as comments, so file and manual cannot part.
A key that does not exist is an error that names the nearest one. Knows no home and no daemon.
Law: `parse(template(...))` is the same as the defaults with the given values.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from pathlib import Path
from typing import Annotated, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import ErrorDetails

from node.errors import ConfigError
from node.files import write_new

_MAX_BYTES = 256 * 1024
_HOST = r"/(?:ip4|ip6|dns|dns4|dns6)/[0-9A-Za-z.:%_-]+"
Listen = Annotated[str, StringConstraints(pattern=rf"^{_HOST}/tcp/\d{{1,5}}$")]
Peer = Annotated[str, StringConstraints(pattern=rf"^{_HOST}/tcp/\d{{1,5}}/p2p/[1-9A-HJ-NP-Za-km-z]{{40,60}}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z][0-9A-Za-z ._-]{0,62}$")]
Code = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]{0,63}$")]
AUTO: Final = "auto"
Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_FORMS = {
    "name": "Clinic North: letters, digits, blanks, dots, dashes, at most 63",
    "collective": "64 lower-case hex digits, as `fishernet collective show` prints them",
    "listen": "/ip4/0.0.0.0/tcp/4242",
    "purpose": "model-improvement: small letters, digits, dots, dashes, at most 64",
    "purposes": "model-improvement: small letters, digits, dots, dashes, at most 64",
    "members": "64 lower-case hex digits, as `fishernet collective show` prints them",
    "peers": "/ip4/192.0.2.7/tcp/4242/p2p/12D3Koo..., as `fishernet status` prints it at that node",
}
_LIST: Final = Field(strict=False)  # TOML arrays arrive as lists, and we keep tuples


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Node(_Section):
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


class Network(_Section):
    """How other nodes reach this one."""

    listen: Annotated[tuple[Listen, ...], _LIST, Field(min_length=1)] = Field(
        default=("/ip4/0.0.0.0/tcp/4242",),
        description="Addresses to listen on. Keep the port: others remember it. 127.0.0.1 = this machine only.",
    )
    peers: Annotated[tuple[Peer, ...], _LIST] = Field(
        default=(),
        description="Members to dial first, as `fishernet status` prints it there: /ip4/192.0.2.7/tcp/4242/p2p/12D...",
    )


class Train(_Section):
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


class Serve(_Section):
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


class Egress(_Section):
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


class Ledger(_Section):
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


class NodeConfig(_Section):
    """A whole `node.toml`."""

    node: Node = Node()
    network: Network = Network()
    train: Train = Train()
    serve: Serve = Serve()
    egress: Egress = Egress()
    ledger: Ledger = Ledger()


def load(path: Path) -> NodeConfig:
    """Read and check the file.

    Raises:
        ConfigError: not readable, not TOML, or a key or value is not acceptable; file, line and key are named.
    """
    return parse(read_text(path, "config"), source=path)


def read_text(path: Path, what: str) -> str:
    """The text of a TOML file of ours; `what` names it in errors (raises ConfigError: not readable, too large, not UTF-8)."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as e:
        raise ConfigError(f"couldn't read {what} {path}: {e.strerror}") from None
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"couldn't read {what} {path}: over {_MAX_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as e:
        raise ConfigError(f"couldn't read {what} {path}: not UTF-8 at byte {e.start}") from None


def parse(text: str, *, source: Path) -> NodeConfig:
    """Check `text`; `source` is only named in errors (raises ConfigError)."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"couldn't read config {source}: {e}") from None
    try:
        return NodeConfig.model_validate(values)
    except ValidationError as e:
        faults = [_fault(error, text) for error in e.errors(include_url=False)]
        raise ConfigError(f"couldn't use config {source}: " + "; ".join(faults)) from None


def template(**node: str) -> str:
    """The commented TOML of a new node, all defaults, with the given keys of [node] filled in."""
    lines = ["# Configuration of one Fishernet node. Check it with: fishernet config check", ""]
    for section, field in NodeConfig.model_fields.items():
        model = _model(field.annotation)
        lines += [f"# {model.__doc__}", f"[{section}]"]
        for key, item in model.model_fields.items():
            default = item.get_default(call_default_factory=True)
            value = node.get(key, default) if section == "node" else default
            lines += [f"# {item.description}", f"{key} = {literal(value)}"]
        lines.append("")
    return "\n".join(lines)


def update(path: Path, section: str, key: str, value: object) -> NodeConfig:
    """Set one key of the file in place, every comment kept, and return the new configuration.

    Raises:
        ConfigError: the result would not be acceptable; the file is then as before.
    """
    load(path)
    lines = path.read_text(encoding="utf-8").split("\n")
    start, end = _span(lines, section)
    entry = f"{key} = {literal(value)}"
    held = [i for i in range(start, end) if re.match(rf"\s*{re.escape(key)}\s*=", lines[i])]
    if held:
        stop = held[0] + 1
        while stop < end and not _complete("\n".join(lines[held[0] : stop])):  # an array over several lines
            stop += 1
        lines[held[0] : stop] = [entry]
    elif start:
        lines.insert(start, entry)
    else:
        lines += [f"[{section}]", entry, ""]
    text = "\n".join(lines)
    new = parse(text, source=path)
    write_new(path, text.encode(), mode=0o600)
    return new


def nearest(word: str, known: list[str]) -> str:
    """The known word most like `word`, or "" when none is."""
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return found[0] if found else ""


def literal(value: object) -> str:
    """The TOML literal of a value; JSON's strings, numbers and booleans are TOML's too. Law: `value_of(literal(v)) == v`."""
    if isinstance(value, dict):
        pairs = (f"{literal(str(key))} = {literal(item)}" for key, item in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(literal(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace(
        "\x7f", r"\u007f"
    )  # the one character that TOML escapes and JSON not


def value_of(text: str) -> object:
    """The value of a TOML literal; text that is none stands for itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def as_name(text: str) -> str:
    """`text` with everything left out that a node's name may not hold."""
    kept = re.sub(r"[^0-9A-Za-z ._-]+", "-", text).strip(" ._-")[:63]
    return kept or "node"


def _model(annotation: object) -> type[_Section]:
    if not (isinstance(annotation, type) and issubclass(annotation, _Section)):
        raise TypeError(f"{annotation} is not a section: {get_args(annotation)}")
    return annotation


def _fault(error: ErrorDetails, text: str) -> str:
    """One line for a person: where, which key, what is wrong."""
    path = [str(part) for part in error["loc"]]
    section, key = path[0], path[1] if len(path) > 1 else ""
    where = f"[{section}] {key}".rstrip()
    start, end = _span(text.split("\n"), section)
    for number, line in enumerate(text.split("\n")[start:end], start + 1):
        if key and re.match(rf"\s*{re.escape(key)}\s*=", line):
            where = f"line {number}: {where}"
            break
    if error["type"] == "extra_forbidden":
        return f"{where} is unknown{_suggestion(section, key)}"
    if error["type"] == "string_pattern_mismatch":
        return f"{where} should look like {_FORMS[key]}"
    value: object = error["input"]
    shown = f" (it is {literal(value)})" if isinstance(value, str | int | float) and key != "api_keys" else ""
    return f"{where}: {error['msg'][0].lower()}{error['msg'][1:]}{shown}"


def _suggestion(section: str, key: str) -> str:
    sections = {name: list(_model(field.annotation).model_fields) for name, field in NodeConfig.model_fields.items()}
    if not key:
        owner = next((name for name, keys in sections.items() if section in keys), "")
        near = nearest(section, list(sections))
        return f", it belongs into [{owner}]" if owner else f", did you mean [{near}]?" if near else ""
    if near := nearest(key, sections.get(section, [])):
        return f", did you mean {near}?"
    owner = next((name for name, keys in sections.items() if key in keys), "")
    return f", it belongs into [{owner}]" if owner else f"; [{section}] knows {', '.join(sections.get(section, []))}"


def _span(lines: list[str], section: str) -> tuple[int, int]:
    """Indices of the lines that follow the header of `section`, up to the next header; (0, 0) without one."""
    heads = [i for i, line in enumerate(lines) if re.match(r"\s*\[[^\[\]\"',]+\]\s*(#.*)?$", line)]
    for i in heads:
        if re.match(rf"\s*\[\s*{re.escape(section)}\s*\]", lines[i]):
            return i + 1, next((j for j in heads if j > i), len(lines))
    return 0, 0


def _complete(fragment: str) -> bool:
    try:
        tomllib.loads(fragment)
    except tomllib.TOMLDecodeError:
        return False
    return True
