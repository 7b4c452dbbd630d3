"""`model: "auto"`: which expert's adapter answers a prompt, and why (composition of experts).

Each expert has a domain: what its owner declared about its data sets in the ledger, or a text that the operator gives in
`[serve] experts`. Domain and prompt are embedded by the base model (mean last hidden state). The states of one language
model point much the same way whatever it reads, and a few coordinates outweigh all others; so all profiles are centred on
the mean of sixteen general texts and divided by their spread, coordinate by coordinate. The nearest domain by cosine wins
if it is clearly nearer than the next one and than general talk (0). Else `latest`, or `view`, or `base` answers, and the
answer says so. `benchmarks/bench_routing.py` measures it.

A routed request costs one prefill of at most `LONGEST` characters of its prompt on the base model; a domain is embedded
once and kept by the digest of its text. No row is read here: texts come from the ledger and from the operator.
Invariant: `decide` is a function of its arguments; the same prompt, domains and margin give the same expert.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from ledger.events.grants import DataDescribed
from node.errors import ConfigError
from node.ports import Chat, Prompt, Route, ServedModel, Tokens, Usage
from node.serving.names import Names
from protocol.ids import Digest, digest

MARGIN: Final = 0.1  # how much nearer than the next one the nearest domain must be, in cosine; see the benchmark
GENERAL: Final = (
    "What is the weather like today?", "Tell me a joke.", "Write a short letter to a friend.", "Who wrote Hamlet?",
    "How far is the moon from the earth?", "Give me a recipe for soup.", "Translate this sentence into French.",
    "What is 12 times 8?", "List three books about history.", "Explain how a bicycle works.", "Thank you very much.",
    "Describe a walk through a forest.", "Which city is the largest in Japan?", "Make a plan for my week.",
    "What does the word serendipity mean?", "Tell me about the Second World War.",
)  # fmt: skip
LONGEST: Final = 2000  # characters of a prompt that are looked at: its end, where the question stands
_PIECE: Final = 600  # characters embedded at once; a domain's profile is the mean of its pieces
_PIECES: Final = 8  # of one domain, spread over its text
_MOST_IDS: Final = 512
_MOST_TEXT: Final = 1 << 20  # characters of a file
_KEPT: Final = 256  # profiles in memory

Vector = npt.NDArray[np.float32]
Embed = Callable[[Sequence[Prompt]], Awaitable[tuple[Vector, Usage]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """What one expert is for; `source` says who said so: "declared" in the ledger, or "configured" by the operator."""

    text: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The expert that a prompt goes to (None: none is clearly nearest) and every expert's cosine, best first."""

    expert: str | None
    reason: str  # "nearest" | "unclear" | "no-experts"
    scores: tuple[tuple[str, float], ...]


def declared(described: Iterable[DataDescribed]) -> str:
    """The domain that a member has declared: names, tags and purposes of its data sets, as one text; "" without any."""
    parts = []
    for event in sorted(described, key=lambda e: e.dataset):
        about = ", ".join((*event.tags, *event.purposes))
        parts.append(f"{event.dataset}: {about}" if about else event.dataset)
    return ". ".join(parts)


def configured(experts: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The operator's texts by model name; "@FILE" is what stands in a file, named from `folder`.

    Raises:
        ConfigError: a file cannot be read, or is empty.
    """
    found = {}
    for name, text in experts.items():
        if text.startswith("@"):
            file = folder / text[1:]
            try:
                with file.open(encoding="utf-8") as opened:
                    found[name] = opened.read(_MOST_TEXT)
            except (OSError, UnicodeDecodeError) as e:
                cause = e.strerror if isinstance(e, OSError) else "it is not UTF-8"
                raise ConfigError(f"couldn't use [serve] experts: {name} names {file}: {cause}") from None
        else:
            found[name] = text
        if not found[name].strip():
            raise ConfigError(f"couldn't use [serve] experts: {name} has no text")
    return found


def decide(prompt: Vector, profiles: Mapping[str, Vector], general: Vector, *, margin: float = MARGIN) -> Choice:
    """The expert whose profile is nearest to a prompt; all are [hidden], `general` is [texts, hidden], two or more.

    A score is the cosine of prompt and profile, both centred on the general texts and divided by their spread.
    """
    wide = general.astype(np.float64)
    mean, spread = _unit(wide.mean(axis=0)), wide.std(axis=0) + 1e-3 * wide.std()

    def placed(vector: Vector) -> npt.NDArray[np.float64]:
        return _unit((_unit(vector.astype(np.float64)) - mean) / spread)

    asked = placed(prompt)
    cosines = [(name, round(float(placed(profiles[name]) @ asked), 4)) for name in sorted(profiles)]
    scores = tuple(sorted(cosines, key=lambda pair: (-pair[1], pair[0])))
    if not scores:
        return Choice(expert=None, reason="no-experts", scores=())
    second = max(0.0, scores[1][1]) if len(scores) > 1 else 0.0
    clear = scores[0][1] - second >= margin
    return Choice(expert=scores[0][0] if clear else None, reason="nearest" if clear else "unclear", scores=scores)


class Router:
    """Decides for requests; `domains` is replaced whenever what experts are for changes."""

    def __init__(self, embed: Embed, *, margin: float = MARGIN) -> None:
        self._embed, self._margin = embed, margin
        self._profiles: dict[Digest, Vector] = {}
        self._general: Vector | None = None
        self._lock = asyncio.Lock()
        self.domains: Mapping[str, Domain] = {}

    async def route(self, prompt: Prompt, names: Names) -> tuple[ServedModel, Route]:
        """The version that answers `prompt`, and why.

        Raises:
            What embedding raises: ContextTooLong, JobRefused, Busy, ChildDied.
        """
        domains = {n: d for n, d in self.domains.items() if d.text.strip() and names.get(n) is not None}
        choice, tokens = Choice(expert=None, reason="no-experts", scores=()), 0
        if domains:
            profiles, general = await self._profiles_of(domains)
            found, usage = await self._embed([looked_at(prompt)])
            choice, tokens = decide(found[0], profiles, general, margin=self._margin), usage.prompt_tokens
        chosen = names.get(choice.expert) if choice.expert else None
        model = chosen or names.latest or names.view or names.base
        return model, Route(
            model=model.name,
            reason=choice.reason,
            why=_why(choice, domains, model.name),
            scores=choice.scores,
            prompt_tokens=tokens,
        )

    def forget(self) -> None:
        """Forget every profile: the base model is another one now."""
        self._profiles.clear()
        self._general = None

    async def _profiles_of(self, domains: Mapping[str, Domain]) -> tuple[dict[str, Vector], Vector]:
        async with self._lock:  # a crowd of first requests embeds each text once
            if (general := self._general) is None:
                general, _ = await self._embed(GENERAL)
                self._general = general
            keys = {name: digest(domain.text.encode()) for name, domain in domains.items()}
            for name, key in keys.items():
                if key not in self._profiles:
                    parts, _ = await self._embed(pieces(domains[name].text))
                    self._profiles[key] = parts.mean(axis=0, dtype=np.float64).astype(np.float32)
            found = {name: self._profiles[key] for name, key in keys.items()}
            while len(self._profiles) > _KEPT:
                self._profiles.pop(next(iter(self._profiles)))
            return found, general


def looked_at(prompt: Prompt) -> Prompt:
    """The part of a prompt that says what it is about: of a conversation what the user said, and of that the end."""
    match prompt:
        case Chat():
            said = [str(m.get("content", "")) for m in prompt.messages if m.get("role") == "user"]
            return "\n".join(said)[-LONGEST:] or " "
        case Tokens():
            return Tokens(ids=prompt.ids[-_MOST_IDS:])
        case str():
            return prompt[-LONGEST:] or " "


def pieces(text: str) -> list[Prompt]:
    """At most eight parts of a text, from its beginning to its end."""
    starts = range(0, len(text), _PIECE)
    step = max(1, len(starts) // _PIECES)
    return [text[start : start + _PIECE] for start in list(starts)[::step][:_PIECES]]


def _unit(vector: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    norm = float(np.linalg.norm(vector))
    return vector / norm if norm > 0 else vector


def _why(choice: Choice, domains: Mapping[str, Domain], name: str) -> str:
    """One line for people; printable ASCII as the names of models are."""
    if choice.reason == "no-experts":
        return f"no expert has a domain; {name} answers"
    shown = ", ".join(f"{expert} {score:.2f}" for expert, score in choice.scores[:2])
    if choice.expert is None:
        return f"no expert is clearly nearest ({shown}); {name} answers"
    return f"nearest {domains[choice.expert].source} domain ({shown})"
