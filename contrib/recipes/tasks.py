"""Task vectors: their sum, and the ways of thinning them before they are merged (TIES, DARE, DELLA).

Invariant: what is kept of a register depends on that register and its member alone; draws come from an extendable hash
of both, so they are the same on every machine and a stranger repeats them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from contrib.errors import MergeRefused
from contrib.merging import Register, register_digest
from contrib.recipes.exact import Mask, Units, by_block, quotient, total, weight_of
from contrib.recipes.recipe import Recipe, Sent, Vector
from protocol.ids import MemberId

_CHANCES = 2**16
_MOST = _CHANCES * 999 // 1000  # the largest chance of being dropped


def draws(domain: str, member: MemberId, register: Register) -> npt.NDArray[np.uint16]:
    """One draw of 0..65535 for every coordinate [P]: SHAKE-256 of domain, member id and register digest."""
    source = b"fishernet/draws/v1\0" + f"{domain}\0{member}\0{register_digest(register)}".encode()
    stream = hashlib.shake_256(source).digest(2 * len(register.units))
    return np.frombuffer(stream, dtype="<u2").astype(np.uint16, copy=False)


def _task_arithmetic(sent: Sent, parameters: Mapping[str, int]) -> Vector:
    scale, minus = parameters["scale"], f"{parameters['minus']:08x}"
    signs = [-1 if parameters["minus"] and m.startswith(minus) else 1 for m in sent.members]
    factors = [sign * w * len(sent.everybody) * scale for sign, w in zip(signs, sent.weights, strict=True)]
    divisor = np.array([1000 * sent.total], dtype=np.int64)
    return by_block(sent, lambda _at, units, _present: quotient(total(units, factors), divisor))


def _ties(sent: Sent, parameters: Mapping[str, int]) -> Vector:
    count = max(1, sent.coordinates * parameters["keep"] // 1000)
    masks = [_largest(register.units, count) for register in sent.registers]
    return _elected(sent, masks, parameters["scale"], 1000)


def _largest(units: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.bool_]:
    """The `count` coordinates of largest |units|; of equal ones the lower; never a zero [P]."""
    size = np.abs(units)
    sizes = size[size > 0]
    if len(sizes) <= count:
        return size > 0
    least = np.partition(sizes, len(sizes) - count)[len(sizes) - count]
    mask: npt.NDArray[np.bool_] = size > least
    mask[np.flatnonzero(size == least)[: count - int(np.count_nonzero(mask))]] = True
    return mask


def _elected(sent: Sent, masks: list[npt.NDArray[np.bool_]], above: int, below: int) -> Vector:
    """Of what the masks keep, the mean of those whose sign is that of the weighted sum, times above / below."""

    def kernel(at: slice, units: Units, _present: Mask) -> Vector:
        kept = units * np.stack([mask[at] for mask in masks])
        return elect(kept, sent.weights, above, below)

    return by_block(sent, kernel)


def elect(units: Units, weights: tuple[int, ...], above: int, below: int) -> Vector:
    """The weighted mean of the values whose sign is the sum's, times above / below [B]; 0.0 where the sum is 0."""
    agree = (np.sign(units) == np.sign(total(units, weights))) & (units != 0)
    return quotient(total(units * agree, [w * above for w in weights]), weight_of(agree, weights) * below)


def _dare(sent: Sent, parameters: Mapping[str, int]) -> Vector:
    drop = parameters["drop"]
    masks = _dropped_at_random(sent, "dare/1", drop)

    def kernel(at: slice, units: Units, present: Mask) -> Vector:
        kept = units * np.stack([mask[at] for mask in masks])
        top = total(kept, [1000 * w for w in sent.weights])
        return quotient(top, weight_of(present, sent.weights) * (1000 - drop))

    return by_block(sent, kernel)


def _dare_ties(sent: Sent, parameters: Mapping[str, int]) -> Vector:
    drop = parameters["drop"]
    return _elected(sent, _dropped_at_random(sent, "dare-ties/1", drop), 1000, 1000 - drop)


def _dropped_at_random(sent: Sent, domain: str, drop: int) -> list[npt.NDArray[np.bool_]]:
    least = _CHANCES * drop // 1000
    return [draws(domain, m, r) >= least for m, r in zip(sent.members, sent.registers, strict=True)]


def _della(sent: Sent, parameters: Mapping[str, int]) -> Vector:
    if any(max(int(r.units.max(initial=0)), -int(r.units.min(initial=0))) >= 2**52 for r in sent.registers):
        raise MergeRefused("couldn't merge: the values of a register are too large for della/1")
    chances = [_chances(register, parameters["drop"], parameters["window"]) for register in sent.registers]
    kept = [draws("della/1", m, r) >= c for m, r, c in zip(sent.members, sent.registers, chances, strict=True)]

    def kernel(at: slice, units: Units, _present: Mask) -> Vector:
        stays = float(_CHANCES) - np.stack([chance[at] for chance in chances]).astype(np.float64)
        raised = np.rint(units.astype(np.float64) * float(_CHANCES) / stays).astype(np.int64)
        return elect(raised * np.stack([mask[at] for mask in kept]), sent.weights, parameters["scale"], 1000)

    return by_block(sent, kernel)


def _chances(register: Register, drop: int, window: int) -> npt.NDArray[np.uint16]:
    """The chance to be dropped, of 65536, of every coordinate [P]: the larger |units| among those sent, the smaller it is."""
    out = np.zeros(len(register.units), dtype=np.uint16)
    at = np.flatnonzero(register.counts > 0)
    order = np.argsort(-np.abs(register.units[at]), kind="stable")
    ranks = np.arange(len(at), dtype=np.int64)  # 0: the largest; of equal ones the lower coordinate
    top = _CHANCES * ((2 * drop - window) * max(1, len(at)) + 2 * window * ranks)
    out[at[order]] = np.clip(top // (2000 * max(1, len(at))), 0, _MOST)
    return out


_TIES = "Yadav et al. 2023, TIES-Merging (arXiv:2306.01708)"
_DARE = "Yu et al. 2024, Language Models are Super Mario (arXiv:2311.03099)"
_GRIND = "none; a member computes its own draws beforehand and may send what survives them"

RECIPES = (
    Recipe(
        name="task-arithmetic/1",
        about="sum of all members' updates times `scale` permille; `minus` (8 hex digits of an id, as a number) subtracts one",
        paper="Ilharco et al. 2023, Editing Models with Task Arithmetic (arXiv:2212.04089)",
        absent="not sent is a zero",
        breakdown="none: every member adds all it sent",
        merge=_task_arithmetic,
        equal="members * scale / 1000 times themselves",
        parameters={"scale": 300, "minus": 0},
        bounds={"scale": (1, 4000), "minus": (0, 2**32 - 1)},
    ),
    Recipe(
        name="ties/1",
        about="keep the largest `keep` permille of each register, elect a sign, mean of those that have it",
        paper=_TIES,
        absent="not sent has no vote and is not counted",
        breakdown="none: one large value elects the sign, and where nobody else sent it is elected alone",
        merge=_ties,
        equal="the largest `keep` permille of themselves, times scale / 1000",
        parameters={"keep": 200, "scale": 1000},
        bounds={"keep": (1, 1000), "scale": (1, 4000)},
    ),
    Recipe(
        name="dare/1",
        about="drop `drop` permille of what was sent at random, raise the rest, mean over all that had sent",
        paper=_DARE,
        absent="not sent is not counted; what was sent and dropped is a zero",
        breakdown=_GRIND,
        merge=_dare,
        equal="themselves in the mean over draws",
        parameters={"drop": 500},
        bounds={"drop": (0, 990)},
    ),
    Recipe(
        name="dare-ties/1",
        about="drop at random as dare, then elect a sign and take the mean of those that have it, as ties",
        paper=f"{_DARE}; {_TIES}",
        absent="not sent, or dropped, has no vote and is not counted",
        breakdown=_GRIND,
        merge=_dare_ties,
        equal="1000 / (1000 - drop) times themselves, or nothing where everybody dropped it",
        parameters={"drop": 500},
        bounds={"drop": (0, 990)},
    ),
    Recipe(
        name="della/1",
        about="drop at random, small values rather than large ones, within `window` permille around `drop`; then as ties",
        paper="Deep et al. 2024, DELLA-Merging (arXiv:2406.11617); ranks over the whole register",
        absent="not sent, or dropped, has no vote and is not counted",
        breakdown=_GRIND,
        merge=_della,
        equal="themselves divided by the chance to stay, or nothing where everybody dropped it",
        parameters={"drop": 500, "window": 200, "scale": 1000},
        bounds={"drop": (0, 990), "window": (0, 900), "scale": (1, 4000)},
    ),
)
