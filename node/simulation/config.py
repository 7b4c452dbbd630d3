"""What a simulation is: one TOML file, checked like `node.toml`. The field descriptions are the manual.

A key that does not exist is an error that names the nearest one. Knows no ledger and no model.
Law: the same file and seed give the same feeds and the same curves.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from ledger.charter_reading import MAX_MEMBERS
from node.config import literal, nearest, read_text
from node.errors import ConfigError

_LIST: Final = Field(strict=False)  # TOML arrays arrive as lists, and we keep tuples


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Simulation(_Section):
    """How many members, for how long."""

    members: int = Field(default=10, ge=1, le=MAX_MEMBERS, description="Members, attackers among them; all vote.")
    releases: int = Field(default=4, ge=1, description="Stop once every member that is there has this many releases.")
    seed: int = Field(default=1, ge=0, lt=2**31, description="Of everything that is drawn.")
    hours: float = Field(default=24.0, gt=0, description="Simulated time after which it stops in any case.")


class Network(_Section):
    """The fake network."""

    delay_ms: Annotated[tuple[int, int], _LIST] = Field(
        default=(10, 120), description="Each message takes a time drawn between these."
    )
    bandwidth_kbit: float = Field(default=10_000.0, gt=0, description="Of every link; adds to the delay of a message.")
    loss: float = Field(default=0.0, ge=0, lt=1, description="Share of messages that never arrive.")
    heads_every_s: float = Field(
        default=5.0, gt=0, description="A member asks a random other one what it holds, so often."
    )
    retry_s: float = Field(default=3.0, gt=0, description="A question without an answer is asked again after this.")
    announce_to: int = Field(
        default=0,
        ge=0,
        description="Members that news is passed on to by each that hears it first; 0 = the author tells all.",
    )


class Split(_Section):
    """A time in which the first members do not hear the others."""

    start_s: float = Field(ge=0, description="When it begins, in simulated seconds.")
    end_s: float = Field(gt=0, description="When it heals.")
    members: int = Field(ge=1, description="How many members, from the first on, are on one side.")


class Churn(_Section):
    """Members that go away (killed, with everything in memory lost) and come back."""

    share: float = Field(default=0.0, ge=0, le=1, description="Share of the members that do so at all.")
    stay_s: float = Field(default=300.0, gt=0, description="How long one stays on average, in simulated seconds.")
    away_s: float = Field(default=60.0, gt=0, description="How long it is away on average.")


class Data(_Section):
    """The private rows: one pool, split over the members unlike each other."""

    kind: Literal["words", "demo", "files"] = Field(
        default="words",
        description="words = made up here; demo = the three texts of the demo (fetched once); files = JSONL of your own.",
    )
    files: dict[str, str] = Field(default_factory=dict, description='Sources by name: {clinic = "clinic.jsonl"}.')
    sources: int = Field(default=4, ge=1, le=16, description="How many sources of made-up words.")
    rows: int = Field(default=600, ge=1, description="Rows of the pool, at most.")
    alpha: float = Field(
        default=0.3, gt=0, description="Dirichlet concentration over sources (or labels): small = unlike each other."
    )
    held_out: float = Field(default=0.25, gt=0, lt=1, description="Share of each member's rows that only measures.")
    least: int = Field(default=24, ge=8, description="Rows that every member has at least.")


class Training(_Section):
    """One local run."""

    kind: Literal["model", "vectors"] = Field(
        default="model",
        description="model = the test model, really trained; vectors = no model, quadratic losses: network and ledger only.",
    )
    steps: int = Field(default=6, ge=1, description="Optimizer steps of a run.")
    batch: int = Field(default=4, ge=1, description="Sequences in one step.")
    length: int = Field(default=64, ge=8, description="Tokens in one sequence.")
    learning_rate: float = Field(default=0.01, gt=0, lt=1, description="Peak learning rate.")
    warmup: int = Field(default=2, ge=0, description="Steps until the peak is reached.")
    fisher_sequences: int = Field(default=8, ge=1, description="Sequences that estimate which coordinates matter.")
    run_s: float = Field(default=60.0, gt=0, description="Simulated seconds that a run takes on the median machine.")
    spread: float = Field(
        default=0.2, ge=0, le=2, description="How unlike the machines are: sigma of the log of speed."
    )
    coordinates: int = Field(default=512, ge=16, description="P of synthetic vectors.")
    heterogeneity: float = Field(
        default=0.3, ge=0, le=1, description="Share of a synthetic member's optimum that is its own."
    )


class Collective(_Section):
    """The charter."""

    rank: int = Field(default=4, ge=1, description="Rank of the adapter.")
    targets: Annotated[tuple[str, ...], _LIST, Field(min_length=1)] = Field(
        default=("all-linear",), description="Modules that it touches."
    )
    density: float = Field(default=0.1, gt=0, le=1, description="Share of coordinates that an update may send.")
    value_bits: int = Field(default=8, description="Bits of a value.")
    block: int = Field(default=64, ge=1, description="Values that share a scale.")
    recipe: str = Field(default="contributor-mean/1", description="How registers are merged.")
    tolerance: float = Field(default=0.05, ge=0, description="Rise of a voter's own loss (nats) that it bears.")
    norm_cap: float = Field(default=1000.0, gt=0, description="Most L2 norm of one update.")
    held_out_min: int = Field(default=1, ge=0, description="Held-out rows from which on a voter tells its losses.")
    wait_for: float = Field(default=1.0, gt=0, le=1, description="Share of the members whose updates are waited for.")
    patience_s: float = Field(default=180.0, gt=0, description="How long, once one is there.")
    timeout_s: float = Field(default=20.0, gt=0, description="Of the first attempt of a vote.")
    faults: int = Field(default=-1, ge=-1, description="Hostile members that a vote bears; -1 = a third of them.")


class Evaluation(_Section):
    """What is measured; measuring costs most of the time of a large simulation."""

    rows: int = Field(default=12, ge=1, description="Held-out rows of one measurement, at most.")
    members: int = Field(default=0, ge=0, description="Honest members whose losses make the curves; 0 = all.")
    per_release: int = Field(
        default=0,
        ge=0,
        description="Measurements of voters at one height, at most; only so many voters measure at all. 0 = as many as wanted.",
    )
    cards: bool = Field(
        default=True, description="Members measure their own runs, for the card (two measurements each)."
    )


class Attacker(_Section):
    """Some hostile members of one kind."""

    attack: str = Field(description="Name of the attack.")
    count: int = Field(default=1, ge=1, description="How many members.")
    from_release: int = Field(default=1, ge=1, description="Honest before this release is in the making.")


class SimulationConfig(_Section):
    """A whole simulation."""

    simulation: Simulation = Simulation()
    network: Network = Network()
    splits: Annotated[tuple[Split, ...], _LIST] = ()
    churn: Churn = Churn()
    data: Data = Data()
    training: Training = Training()
    collective: Collective = Collective()
    evaluation: Evaluation = Evaluation()
    attackers: Annotated[tuple[Attacker, ...], _LIST] = ()

    @property
    def hostile(self) -> int:
        """How many members are attackers."""
        return sum(each.count for each in self.attackers)


def load(path: Path) -> SimulationConfig:
    """Read and check the file.

    Raises:
        ConfigError: not readable, not TOML, or a key or value is not acceptable; section and key are named.
    """
    return parse(read_text(path, "simulation"), source=path)


def parse(text: str, *, source: Path) -> SimulationConfig:
    """Check `text`; `source` is only named in errors (raises ConfigError)."""
    try:
        found = SimulationConfig.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"couldn't read simulation {source}: {e}") from None
    except ValidationError as e:
        faults = [_fault(error) for error in e.errors(include_url=False)]
        raise ConfigError(f"couldn't use simulation {source}: " + "; ".join(faults)) from None
    if fault := _misfit(found):
        raise ConfigError(f"couldn't use simulation {source}: {fault}")
    return found


def seeded(config: SimulationConfig, seed: int) -> SimulationConfig:
    """The same simulation with another seed."""
    whole = config.model_dump()
    return SimulationConfig.model_validate({**whole, "simulation": {**whole["simulation"], "seed": seed}})


def _misfit(config: SimulationConfig) -> str:
    """What is wrong between sections; "" for nothing."""
    from node.simulation.attackers import ATTACKS

    low, high = config.network.delay_ms
    if not 0 <= low <= high:
        return "[network] delay_ms is two numbers, the smaller first"
    if config.hostile >= config.simulation.members:
        return f"[[attackers]] are {config.hostile} of {config.simulation.members} members; one at least is honest"
    for each in config.attackers:
        if each.attack not in ATTACKS:
            near = nearest(each.attack, list(ATTACKS))
            hint = f", did you mean {near}?" if near else f"; known: {', '.join(ATTACKS)}"
            return f"[[attackers]] attack {literal(each.attack)} is unknown{hint}"
    if config.data.kind == "files" and not config.data.files:
        return "[data] kind is files, but files names none"
    return ""


def _fault(error: ErrorDetails) -> str:
    """One line for a person: which key, what is wrong, what is near it."""
    names = [str(part) for part in error["loc"] if not isinstance(part, int)]
    section, key = names[0], names[1] if len(names) > 1 else ""
    where = f"[{section}] {key}".rstrip()
    if error["type"] == "extra_forbidden":
        sections = {name: _keys(field.annotation) for name, field in SimulationConfig.model_fields.items()}
        known = sections.get(section, []) if key else list(sections)
        near = nearest(key or section, known)
        return f"{where} is unknown" + (f", did you mean {near}?" if near else f"; known: {', '.join(known)}")
    value: Any = error["input"]
    shown = f" (it is {literal(value)})" if isinstance(value, str | int | float) else ""
    return f"{where}: {error['msg'][0].lower()}{error['msg'][1:]}{shown}"


def _keys(annotation: Any) -> list[str]:
    kinds = (annotation, *get_args(annotation))
    return next((list(k.model_fields) for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), [])
