"""What a training run did, for people: what was tried and chosen for it, and what it sent.

Knows the shape `train` of `node.cli.render` and nothing else; a missing key shows as a dash.
"""

from __future__ import annotations

from rich.console import Console

from node.cli.render import Result, brief, nats, size, text


def trained(out: Console, result: Result) -> None:
    """What a run learnt and sent."""
    losses = f"{nats(result.get('loss_before'))} -> {nats(result.get('loss_after'))}"
    out.print(f"run {text(result.get('run'))}: {text(result.get('steps'))} steps, own held-out loss {losses} nats")
    for line in _chosen(result):
        out.print(line)
    if result.get("digest"):
        out.print(
            f"published {brief(result['digest'])}: {text(result.get('sent'))} coordinates, {size(result['bytes'])}"
        )


def _chosen(result: Result) -> list[str]:
    """How a run was trained, where anything was chosen for it."""
    rate = result.get("learning_rate")
    tried = [f"{trial['lr']:g}" for trial in result.get("trials") or ()]
    said = []
    if tried:
        said.append(
            f"tuned on own training rows: learning rate {rate:g} (tried alone: {', '.join(tried)}), {result['planned']} steps"
        )
    elif result.get("untuned"):
        said.append(f"[yellow]not tuned:[/] too few training rows to keep some aside; learning rate {rate:g}")
    if result.get("stopped"):
        said.append("stopped early: the loss on rows kept for tuning no longer fell; the best iterate is kept")
    return said
