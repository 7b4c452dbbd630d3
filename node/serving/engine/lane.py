"""One base model at work: at each step all rows read together, whatever prompt, adapter and age they have.

Joins the pure parts (scheduler, answers) with the runner, the store and the sampler. Knows no other base, no thread and no
line of JSON: what happens to a request is told to a `Reports`.

Invariant: a row runs to its end on the slot it was opened with; a request that fails, is cancelled or comes to its deadline
frees its rows before the next step and disturbs no other.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Final

import torch
from torch import Tensor

from contrib.adapters import AdapterSpec
from node.errors import JobRefused
from node.errors_serving import Busy
from node.serving.engine.answer import ALL, DEADLINE, NONE, Answer, Request
from node.serving.engine.embedding import Embedding, Embeds
from node.serving.engine.reports import Counts, Reports
from node.serving.engine.rows import EMBEDDING, Work
from node.serving.engine.sampling import draw_rows, score_rows
from node.serving.engine.scheduler import BASE, Entry, Limits, Scheduler, Start
from node.serving.engine.store import Found, Source
from node.serving.engine.text import Text
from node.serving.engine.tiers import Tiers
from protocol.errors import FishernetError

PROMPT_ALONE: Final = 256  # tokens of prompts in a step in which no answer is being written
PROMPT_BESIDE: Final = 64  # and beside answers: what a prompt may add to the time between two of their tokens


Unit = Answer | Embedding


class Lane:
    """The requests, rows and adapters of one base model. One thread calls it."""

    def __init__(
        self,
        *,
        base: str,
        text: Text,
        runner: Any,
        spec: AdapterSpec | None,
        limits: Limits,
        ram: int,
        reports: Reports,
        wake: Callable[[], None],
    ) -> None:
        """Serve on `runner`; `spec` is the shape of vectors that come without one, `ram` bytes hold adapters."""
        self.base, self.text, self.spec = base, text, spec
        self.runner = runner
        self.counts = Counts()
        self._reports = reports
        self._scheduler = Scheduler(limits)
        self._tiers = Tiers(runner, base, limit=ram, uses=self._scheduler.uses, wake=wake)
        self._numbers = count(1)
        self._requests: dict[int, Request | Embeds] = {}
        self._waiting: dict[int, tuple[Entry, Unit]] = {}
        self._running: dict[int, tuple[Entry, Unit]] = {}
        self._short: set[str] = set()

    # -- requests ----------------------------------------------------------------------------------------------------
    def submit(self, request: Request, now: float) -> None:
        """Take a generate request, or fail it at once."""
        try:
            if request.source is not None:
                self._tiers.want(request.source, now)
            self._offer(request, Answer(request, 0, self.text), request.version, len(request.ids), now)
        except Exception as e:  # noqa: BLE001  (a request that cannot be taken must not end the engine)
            self._reports.failed(request.number, e)
            return
        self._requests[request.number] = request
        self.counts.named(request.name)[0] += 1

    def submit_embeds(self, embeds: Embeds, now: float) -> None:
        """Take an embed request, or fail it at once; all its inputs are queued or none."""
        embeds.left = len(embeds.inputs)
        self._requests[embeds.number] = embeds
        try:
            for index, ids in enumerate(embeds.inputs):
                self._offer(embeds, Embedding(embeds, index), BASE, len(ids), now)
        except FishernetError as e:
            self._fail(embeds, e, now)

    def cancel(self, number: int, now: float) -> bool:
        """End a request because nobody wants it any more; False when it is not here."""
        request = self._requests.get(number)
        if request is None:
            return False
        self.counts.cancelled += 1
        self._end(request, now)
        self._reports.cancelled(number)
        return True

    def load(self, source: Source, now: float) -> bool:
        """See that a version comes into memory; True when it is there. Raises the error of reading it."""
        return self._tiers.load(source, now) is Found.READY

    def drop(self, version: str) -> None:
        """Hold a version no longer than requests under way need it."""
        self._tiers.drop(version)
        self._forget()

    def _offer(self, request: Request | Embeds, unit: Unit, version: str, cost: int, now: float) -> None:
        entry = self._entry(request, version, cost)
        retry_after = self._scheduler.offer(entry, now)
        if retry_after is not None:
            self.counts.queue_full += 1
            raise Busy(f"couldn't take request: {self._scheduler.waiting} wait already", retry_after=retry_after)
        self._waiting[entry.number] = entry, unit

    def _entry(self, request: Request | Embeds, version: str, cost: int) -> Entry:
        return Entry(
            number=next(self._numbers),
            version=version,
            tenant=request.tenant,
            arrived=request.arrived,
            cost=cost,
            deadline=request.deadline,
        )

    # -- the step ----------------------------------------------------------------------------------------------------
    @property
    def idle(self) -> bool:
        """True when there is nothing to do."""
        return not self._requests

    def step(self, now: float) -> bool:
        """Let everything go on by one step; False when there was nothing to run."""
        self._expire(now)
        self._fetch(now)
        self._start(now)
        chosen = self._choose()
        try:
            if chosen:
                self._advance(chosen, now)
        except Exception as e:  # noqa: BLE001  (what fails in a step ends the requests of that step, not the engine)
            if not isinstance(e, FishernetError):
                traceback.print_exception(e)
            for request in {id(unit.request): unit.request for unit, _ in chosen}.values():
                self._fail(request, e, now)
        return bool(chosen)

    def _advance(self, chosen: Sequence[tuple[Unit, Work]], now: float) -> None:
        outcome = self.runner.step([work for _, work in chosen])
        self.counts.steps += 1
        drawing: list[tuple[Answer, Tensor]] = []
        for (unit, work), found in zip(chosen, outcome, strict=True):
            if isinstance(unit, Embedding):
                self._embedded(unit, found, now)
            elif not unit.request.over and self._read(unit, work, found, now):
                drawing.append((unit, found[-1:]))
        if drawing:
            drawn = draw_rows(torch.cat([logits for _, logits in drawing]), [answer.sampler for answer, _ in drawing])
            for (answer, _), token in zip(drawing, drawn, strict=True):
                if not answer.request.over:
                    self._take(answer, token, now)

    def _expire(self, now: float) -> None:
        for entry in self._scheduler.expired(now):
            _, unit = self._waiting.pop(entry.number)
            self._late(unit, now)
        for entry, unit in [*self._running.values()]:
            if entry.deadline is not None and entry.deadline <= now and entry.number in self._running:
                self._close(entry, unit, now)
                self._late(unit, now)

    def _late(self, unit: Unit, now: float) -> None:
        """An answer has come to its deadline: it is cut where it stands; an embedding has no part of itself to give."""
        if unit.request.over:
            return
        self.counts.deadlines += 1
        if isinstance(unit, Answer):
            self._reports.piece(unit.request, unit.cut(DEADLINE))
            self._ended(unit, now)
        else:
            late = JobRefused("couldn't embed: the deadline came first", reason="deadline")
            self._fail(unit.request, late, now)

    def _fetch(self, now: float) -> None:
        """Bring what is waited for into memory; what can't be read fails its requests."""
        self._short, failed = self._tiers.fetch(self._scheduler.wanted(), now)
        for version, error in failed.items():
            for entry in self._scheduler.fail(version):
                _, unit = self._waiting.pop(entry.number)
                self._fail(unit.request, error, now)
        if self._short and (victim := self._scheduler.give_way(now, self._short)) is not None:
            self._tiers.deactivate(victim)

    def _start(self, now: float) -> None:
        rows = self.runner.rows - len(self._running)
        starts = self._scheduler.plan(now, rows, self.runner.slots_free, self._tiers.bucket, self._short)
        undone: list[Start] = []
        for start in starts:
            if start.evict is not None:
                self._tiers.deactivate(start.evict)
            if undone or (start.activate and not self._tiers.activate(start.entry.version)):
                undone.append(start)
            else:
                self._open(start, now)
        for start in reversed(undone):
            self._scheduler.undo(start)

    def _open(self, start: Start, now: float) -> None:
        entry, unit = self._waiting.pop(start.entry.number)
        self._running[entry.number] = entry, unit
        slot, digest = self._tiers.slot(entry.version)
        # Prompt scores and embeddings need every position: such a row takes nothing from the prefix cache.
        name = entry.version
        if isinstance(unit, Embedding):
            ids, name = unit.ids, EMBEDDING
        else:
            ids, unit.request.digest = unit.request.ids, digest
            name = f"{name}#{entry.number}" if unit.scored else name
        try:
            opened = self.runner.open(ids, slot, name)
        except FishernetError as e:
            self._fail(unit.request, e, now)
            return
        if isinstance(unit, Embedding):
            unit.row = opened.row
        else:
            unit.opened(opened.row, opened.cached)
            self.counts.prefix_hit_tokens += opened.cached

    def _choose(self) -> list[tuple[Unit, Work]]:
        """What each row reads in this step: answers their last token, prompts a share of what a step may take."""
        units = [unit for _, unit in self._running.values()]
        writing = [unit for unit in units if isinstance(unit, Answer) and not unit.prompting]
        chosen: list[tuple[Unit, Work]] = []
        for answer in writing:
            ids, want = answer.work(1)
            chosen.append((answer, Work(row=answer.row, ids=ids, want=want)))
        left = PROMPT_BESIDE if writing else PROMPT_ALONE
        for unit in units:
            if left and (isinstance(unit, Embedding) or unit.prompting):
                ids, want = unit.work(left)
                chosen.append((unit, Work(row=unit.row, ids=ids, want=want)))
                self.counts.tokens_prefill += len(ids)
                left -= len(ids)
        self.counts.tokens_decode += len(writing)
        return chosen

    def _read(self, answer: Answer, item: Work, logits: Any, now: float) -> bool:
        """Take note of what a row has read; True when its next token is to be drawn."""
        if not answer.prompting:
            return True
        if item.want == ALL:
            following = answer.request.ids[answer.read + 1 : answer.read + len(item.ids) + 1]
            top = answer.request.sampling.logprobs or 0
            answer.score(score_rows(logits[: len(following)], following, top) if following else ())
        if not answer.fed(len(item.ids)):
            return False
        if answer.index == 0:
            self._follow(answer)
        if (piece := answer.echo()) is not None:
            self._reports.piece(answer.request, piece)
        if answer.finish is not None:
            self._finish(answer, now)
            return False
        return item.want != NONE

    def _follow(self, first: Answer) -> None:
        """Queue the other answers now that the prompt is read: their rows begin with its pages."""
        request = first.request
        for index in range(request.sampling.n - 1, 0, -1):
            entry = self._entry(request, request.version, 0)
            self._waiting[entry.number] = entry, Answer(request, index, self.text)
            self._scheduler.follow(entry)

    def _take(self, answer: Answer, drawn: Any, now: float) -> None:
        request = answer.request
        if drawn.fault:
            cause = "the model gives numbers that are not finite" if drawn.fault == "not_finite" else "no token fits"
            self._fail(request, JobRefused(f"couldn't answer: {cause}", reason=drawn.fault), now)
            return
        self._scheduler.served(request.tenant, 1)
        self.counts.named(request.name)[1] += 1
        if (piece := answer.take(drawn)) is not None:
            self._reports.piece(request, piece)
        if answer.finish is not None:
            self._finish(answer, now)

    def _embedded(self, unit: Embedding, hidden: Tensor, now: float) -> None:
        request = unit.request
        if request.over or (vector := unit.take(hidden)) is None:
            return
        if not bool(torch.isfinite(vector).all()):
            unfit = JobRefused("couldn't embed: the model gives numbers that are not finite", reason="not_finite")
            self._fail(request, unfit, now)
            return
        self._reports.vector(request, unit.index, vector)
        self._close(next(entry for entry, each in self._running.values() if each is unit), unit, now)
        request.left -= 1
        if not request.left:
            self._over(request)
            self._reports.done(request)

    # -- ends --------------------------------------------------------------------------------------------------------
    def _finish(self, answer: Answer, now: float) -> None:
        """An answer has said its last piece."""
        entry = next(e for e, unit in self._running.values() if unit is answer)
        self._close(entry, answer, now)
        self._ended(answer, now)

    def _ended(self, answer: Answer, now: float) -> None:
        request = answer.request
        request.ended += 1
        if answer.index == 0 and answer.prompting:  # cut in its prompt: the others were not even queued
            for index in range(1, request.sampling.n):
                self._reports.piece(request, Answer(request, index, self.text).cut(answer.finish or DEADLINE))
            request.ended = request.sampling.n
        if request.ended == request.sampling.n:
            self._over(request)
            self._reports.done(request)

    def _fail(self, request: Request | Embeds, error: Exception, now: float) -> None:
        if not request.over:
            self._end(request, now)
            self._reports.failed(request.number, error)

    def _end(self, request: Request | Embeds, now: float) -> None:
        """Take a request out of the queue and off its rows."""
        for entry, unit in [pair for pair in self._waiting.values() if pair[1].request is request]:
            del self._waiting[entry.number], unit
            self._scheduler.cancel(entry.number)
        for entry, unit in [pair for pair in self._running.values() if pair[1].request is request]:
            self._close(entry, unit, now)
        self._over(request)

    def _over(self, request: Request | Embeds) -> None:
        request.over = True
        self._requests.pop(request.number, None)
        self._forget()

    def _close(self, entry: Entry, unit: Unit, now: float) -> None:
        """Free a row at once; what it has read may serve as the beginning of later prompts."""
        del self._running[entry.number]
        if unit.row >= 0:
            self.runner.close(unit.row, keep=isinstance(unit, Answer) and not unit.scored)
        self._scheduler.ended(entry, now)

    def _forget(self) -> None:
        for version in self._tiers.unused():
            self._scheduler.evicted(version)

    def trim(self) -> None:
        """Hold nothing that no request under way needs; for a base that is being replaced."""
        for version in self._tiers.trim():
            self._scheduler.evicted(version)

    def close(self) -> None:
        """End its threads."""
        self._tiers.close()

    # -- counting ----------------------------------------------------------------------------------------------------
    def stats(self) -> dict[str, Any]:
        """Numbers for `Engine.stats`: gauges of this moment, counters since the start."""
        counts = self.counts
        waiting: dict[str, int] = {}
        for _, unit in self._waiting.values():
            if isinstance(unit, Answer):
                waiting[unit.request.name] = waiting.get(unit.request.name, 0) + 1
        return {
            **counts.flat(),
            **self._tiers.stats(),
            "requests_waiting": len(self._waiting),
            "requests_running": len({id(unit.request) for _, unit in self._running.values()}),
            "rows_busy": len(self._running),
            "rows": self.runner.rows,
            "per_adapter": {
                name: {"requests": requests, "tokens": tokens, "waiting": waiting.get(name, 0)}
                for name, (requests, tokens) in counts.by_name.items()
            },
        }
