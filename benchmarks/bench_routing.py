"""How often "auto" finds the right expert: rows, questions and off-topic prompts, for domains said in three ways.

The base's own embedding through the real engine process, as a node routes. Three domains of the demo's texts; domains are
what a ledger declares (names and tags), one sentence of the operator's, or some paragraphs. Right: the expert of the row's
domain. Wrong: another expert. Kept out: off-topic prompts that no expert gets. The general texts and the margin of
`node.serving.routing` were chosen on a draw like this one, so this is no independent test of them.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import numpy as np
from harness import Figure, cache, finish, options, table

from contrib import demo_data, models
from contrib.adapters import AdapterSpec, layout
from contrib.models import SMOLLM2
from node.ports import ServedModel
from node.serving.models import Serving
from node.serving.names import Names
from node.serving.routing import Domain, Router
from protocol.ids import digest

ROWS = 25  # of each domain
PARAGRAPHS = 40
SPEC = AdapterSpec(rank=8, alpha=16, targets=("q_proj", "v_proj"), seed=digest(b"benchmark"))
DECLARED = {
    "clinic": "clinic: medical, model-improvement",
    "security": "security: software-weaknesses, model-improvement",
    "cinema": "cinema: film-reviews, model-improvement",
}
SENTENCE = {
    "clinic": "Medical terms: symptoms, diseases, patients and diagnosis.",
    "security": "Software security weaknesses: attacks, vulnerabilities and code.",
    "cinema": "Movie reviews: films, actors, plots and directors.",
}
QUESTIONS = {
    "clinic": (
        "What is a fever?", "My child has a rash on both arms, what could it be?", "Explain abnormal heart rhythm.",
    ),
    "security": (
        "How do I avoid SQL injection?", "What is a buffer overflow?", "The web server leaks a session token, what now?",
    ),
    "cinema": (
        "Was the movie any good?", "Write a review of a boring comedy.", "The actor was brilliant but the plot was thin.",
    ),
}  # fmt: skip
OFF_TOPIC = (
    "What is the capital of France?", "Write a haiku about the sea.", "Plan a three day trip to Rome.",
    "Add 17 and 25.", "Translate good morning into German.", "How do I bake bread?", "Who was Napoleon?",
    "Summarise the theory of evolution.", "and the of the", "Hello",
)  # fmt: skip


async def measure(serving: Serving, texts: dict[str, list[str]]) -> tuple[list[Figure], list[list[object]]]:
    """Route everything with each kind of domain."""
    names = Names(base=ServedModel(name="base", digest=digest(b"base"), vector=None))
    for name in texts:
        names = names.with_member(ServedModel(name=f"member/{name}", digest=digest(name.encode()), vector=None))
    paragraphs = {name: "\n".join(rows[ROWS : ROWS + PARAGRAPHS]) for name, rows in texts.items()}
    figures, shown = [], []
    for kind, said in (("declared", DECLARED), ("sentence", SENTENCE), ("paragraphs", paragraphs)):
        router = Router(serving.embed)
        router.domains = {f"member/{name}": Domain(text=text, source=kind) for name, text in said.items()}
        since = time.monotonic()
        await router.route("warm", names)
        first = time.monotonic() - since
        rows = [(name, text) for name, each in texts.items() for text in each[:ROWS]]
        asked = [(name, text) for name, each in QUESTIONS.items() for text in each]
        found = {text: (await router.route(text, names))[1] for _, text in (*rows, *asked)}
        off = [(await router.route(text, names))[1].reason == "unclear" for text in OFF_TOPIC]
        shares = []
        for part in (rows, asked):
            right = np.mean([found[text].model == f"member/{name}" for name, text in part])
            wrong = np.mean([found[text].model not in ("base", f"member/{name}") for name, text in part])
            shares += [float(right), float(wrong)]
        kept = float(np.mean(off))
        shown.append([kind, *(f"{share:.2f}" for share in (*shares, kept)), f"{first:.1f}"])
        figures += [
            Figure(id=f"routing-{kind}-rows-right", value=shares[0], floor=0.8 if kind == "paragraphs" else None),
            Figure(id=f"routing-{kind}-rows-wrong", value=shares[1], floor=0.05, lower=True),
            Figure(id=f"routing-{kind}-off-topic-kept-out", value=kept, floor=0.6),
        ]
    return figures, shown


def main() -> int:
    """Fetch what is missing, measure, print."""
    began = time.monotonic()
    arguments = options(__doc__ or "").parse_args()
    files = demo_data.fetch(cache(), on_progress=lambda line: print(line, file=sys.stderr))
    rng, texts = np.random.default_rng(0), dict[str, list[str]]()
    for name in DECLARED:
        rows = [json.loads(line)["text"] for line in files[name].read_text(encoding="utf-8").splitlines()]
        texts[name] = [rows[i] for i in rng.permutation(len(rows))[: ROWS + PARAGRAPHS]]
    base = models.add(SMOLLM2, cache())
    adapter = {**SPEC.to_json(), "coordinates": layout(base.path, SPEC).coordinates}
    serving = Serving(model=base.path, base=base.digest, adapter=adapter)

    async def run() -> tuple[list[Figure], list[list[object]]]:
        try:
            await serving.start(preload=True)
            return await measure(serving, texts)
        finally:
            await serving.stop()

    figures, rows = asyncio.run(run())
    header = ["domains", "rows right", "wrong", "questions right", "wrong", "off-topic kept out", "first s"]
    table("auto on SmolLM2-135M, three domains", header, rows)
    return finish(figures, arguments, began=began)


if __name__ == "__main__":
    sys.exit(main())
