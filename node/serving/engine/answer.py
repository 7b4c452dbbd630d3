"""One request and its answers on their way from token ids to pieces of text. Pure: no model, no thread, no clock.

An `Answer` says which tokens its row reads next (the prompt in chunks, then what was drawn) and turns what is drawn into
pieces: whole characters, nothing of a stop sequence, scores where they were asked for.

Invariant: the pieces of an answer joined are its text, and exactly its last piece says why it ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from node.ports import Piece, Sampling, TokenScore, Usage
from node.serving.engine.decoding import Detokenizer, StopFilter

if TYPE_CHECKING:
    from node.serving.engine.sampling import Drawn, Sampler
    from node.serving.engine.store import Source
    from node.serving.engine.text import Text

NONE, LAST, ALL = "none", "last", "all"  # logits a row wants of what it reads
STOP, LENGTH, DEADLINE = "stop", "length", "deadline"


@dataclass(slots=True, kw_only=True, eq=False)
class Request:
    """One generate job: `ids` is its prompt, `most` the length of an answer; times are the engine's clock."""

    number: int
    name: str  # what the model was asked for as, for counting
    version: str
    source: Source | None  # None: the bare base
    tenant: str
    ids: Sequence[int]
    sampling: Sampling
    samplers: Sequence[Sampler]
    most: int
    arrived: float
    deadline: float | None
    ended: int = 0  # answers
    drawn: int = 0  # tokens, over all answers
    cached: int = 0
    digest: str = ""  # of what answers
    over: bool = False
    scores: tuple[TokenScore, ...] = ()  # of the prompt, once known

    @property
    def scored(self) -> bool:
        """True when the prompt's own scores are wanted: then every position's logits are, cached or not."""
        return self.sampling.echo and self.sampling.logprobs is not None

    def usage(self) -> Usage:
        """What it has cost."""
        return Usage(prompt_tokens=len(self.ids), completion_tokens=self.drawn, cached_tokens=self.cached)


@dataclass(slots=True, eq=False)
class Answer:
    """One answer of a request."""

    request: Request
    index: int
    text: Text
    row: int = -1
    read: int = 0  # tokens of the prompt that the row has read
    drawn: int = 0
    finish: str | None = None
    _next: int = -1  # the token drawn last
    _scores: list[TokenScore] = field(default_factory=list)
    _words: Detokenizer = field(init=False)
    _stops: StopFilter = field(init=False)

    def __post_init__(self) -> None:
        self._words = Detokenizer(self.text.decode)
        self._stops = StopFilter(self.request.sampling.stop)

    @property
    def sampler(self) -> Sampler:
        """How its tokens are drawn."""
        return self.request.samplers[self.index]

    @property
    def prompting(self) -> bool:
        """True while the prompt is not read to its end."""
        return self.read < len(self.request.ids)

    def opened(self, row: int, cached: int) -> None:
        """It has a row, which holds the first `cached` tokens of the prompt already."""
        self.row, self.read = row, cached
        if self.index == 0:
            self.request.cached = cached

    # -- what the row reads ------------------------------------------------------------------------------------------
    def work(self, most: int) -> tuple[Sequence[int], str]:
        """The tokens to read next, of a prompt at most `most`, and the logits wanted of them."""
        if not self.prompting:
            return (self._next,), LAST
        ids = self.request.ids[self.read : self.read + most]
        if self.scored:
            return ids, ALL
        return ids, LAST if self.read + len(ids) == len(self.request.ids) else NONE

    @property
    def scored(self) -> bool:
        """True when the prompt's scores are still to be found; the first answer finds them for all."""
        return self.request.scored and self.index == 0

    def fed(self, count: int) -> bool:
        """`count` tokens of the prompt are read; True when that was its end."""
        self.read += count
        return not self.prompting

    def score(self, found: Sequence[Drawn]) -> None:
        """Scores of the prompt's next tokens; the first token of all has none, for nothing stands before it."""
        if not self._scores:
            self._scores.append(self._scored(self.request.ids[0], None, ()))
        self._scores += [self._scored(each.token, each.logprob, each.top) for each in found]
        if len(self._scores) == len(self.request.ids):
            self.request.scores = tuple(self._scores)

    # -- what is said ------------------------------------------------------------------------------------------------
    def echo(self) -> Piece | None:
        """The prompt as the answer's first piece, where it was asked for; ends the answer when nothing is to follow."""
        if not self.request.sampling.echo:
            return None
        self.finish = LENGTH if not self.request.most else None
        text = self.text.decode(self.request.ids)
        return Piece(text=text, index=self.index, tokens=self.request.scores, finish=self.finish)

    def take(self, drawn: Drawn) -> Piece | None:
        """The piece that a drawn token makes certain; None when it is empty."""
        self.drawn += 1
        self.request.drawn += 1
        self._next = drawn.token
        if drawn.token in self.text.ends:
            return self._last(STOP, ())
        tokens = () if drawn.logprob is None else (self._scored(drawn.token, drawn.logprob, drawn.top),)
        said = self._stops.push(self._words.push(drawn.token))
        if self._stops.stopped:
            self.finish = STOP
        elif self.sampler.grammar is not None and self.sampler.grammar.finished:
            return self._last(STOP, tokens, said)
        elif self.drawn == self.request.most:
            return self._last(LENGTH, tokens, said)
        if not (said or tokens or self.finish):
            return None
        return Piece(text=said, index=self.index, finish=self.finish, tokens=tokens)

    def cut(self, finish: str) -> Piece:
        """End the answer where it stands."""
        return self._last(finish, ())

    def _last(self, finish: str, tokens: tuple[TokenScore, ...], said: str = "") -> Piece:
        said += self._stops.push(self._words.finish()) + self._stops.finish()
        self.finish = STOP if self._stops.stopped else finish
        return Piece(text=said, index=self.index, finish=self.finish, tokens=tokens)

    def _scored(self, token: int, logprob: float | None, top: Sequence[tuple[int, float]]) -> TokenScore:
        text, raw = self.text.token_text(token)
        likeliest = tuple((*self.text.token_text(each), score) for each, score in top)
        return TokenScore(id=token, text=text, raw=raw, logprob=logprob, top=likeliest)


DEFAULT_TOKENS: Final = 1024  # length of an answer when the request names none and the context leaves room
