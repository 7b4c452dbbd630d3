"""The recipes of FORMAT.md section 11 once more, coordinate by coordinate, in Python's integers and floats alone.

Written from the page, not from the product: no numpy arithmetic, no blocks, no limbs. A Python float is an IEEE double,
`float(int)`, `/`, `*` and `math.sqrt` are each one correctly rounded step, so the bytes must be the product's.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from fractions import Fraction

DEFAULTS = {
    "contributor-mean/1": {}, "member-mean/1": {}, "sqrt-mean/1": {}, "damped-mean/1": {"quarters": 1},
    "floored-mean/1": {"floor": 2000},
    "count-mean/1": {}, "median/1": {"zeros": 0}, "trimmed-mean/1": {"cut": 200, "zeros": 0},
    "clipped-mean/1": {"clip": 1000, "rms": 0},
    "guarded-mean/1": {"clip": 1000, "rms": 0, "cut": 0, "floor": 2000}, "krum/1": {"faults": 300},
    "multi-krum/1": {"faults": 300},
    "adapter-soup/1": {"keep": 700, "toward": 0}, "geometric-median/1": {"rounds": 4, "zeros": 0},
    "centred-clipping/1": {"rounds": 3, "radius": 1000, "zeros": 0}, "task-arithmetic/1": {"scale": 300, "minus": 0},
    "ties/1": {"keep": 200, "scale": 1000}, "dare/1": {"drop": 500}, "dare-ties/1": {"drop": 500},
    "della/1": {"drop": 500, "window": 200, "scale": 1000},
}  # fmt: skip
ONE = 2**20


def single(value):
    """Rounded to float32."""
    return struct.unpack("<f", struct.pack("<f", value))[0]


def q(top, below):
    return single(float(top) / (float(below) * 2.0**24)) if below else 0.0


def lower_median(values):
    return sorted(values)[(len(values) - 1) // 2]


class Cut:
    """What was sent: `sent` is member -> (units, counts), `weights` of all seats."""

    def __init__(self, sent, weights, coordinates):
        self.weights, self.P = weights, coordinates
        self.n, self.W = len(weights), sum(weights.values())
        self.ids = sorted(m for m, (_, counts) in sent.items() if any(counts))
        self.x = [list(sent[m][0]) for m in self.ids]
        self.counts = [list(sent[m][1]) for m in self.ids]
        self.w = [weights[m] for m in self.ids]

    def everybody(self):
        sent = dict(zip(self.ids, self.x, strict=True))
        return Cut({m: (sent.get(m, [0] * self.P), [1] * self.P) for m in self.weights}, self.weights, self.P)

    def senders(self, c):
        return [i for i in range(len(self.ids)) if self.counts[i][c] > 0]

    def dot(self, i, j):
        return sum(a * b for a, b in zip(self.x[i], self.x[j], strict=True))

    def each(self, rule):
        return [rule(c, self.senders(c)) if self.senders(c) else 0.0 for c in range(self.P)]

    def mean(self, chosen):
        def rule(c, senders):
            kept = [i for i in senders if i in chosen]
            return q(sum(self.w[i] * self.x[i][c] for i in kept), sum(self.w[i] for i in kept))

        return self.each(rule)


def merge(text, sent, weights, coordinates):
    """The merged values, as Python floats."""
    name, _, rest = text.partition(":")
    own = {key: int(value) for key, value in re.findall(r"([a-z]+)=([0-9]+)", rest)}
    cut = Cut(sent, weights, coordinates)
    if not cut.ids:
        return [0.0] * coordinates
    return RULES[name](cut, **DEFAULTS[name] | own)


# -- means -----------------------------------------------------------------------------------------------------------
def _sums(cut, c, senders):
    return sum(cut.w[i] * cut.x[i][c] for i in senders), sum(cut.w[i] for i in senders)


def damped_mean(cut, quarters):
    def rule(c, senders):
        t, v = _sums(cut, c, senders)
        middle = math.sqrt(float(v * cut.W))
        below = (
            float(v), math.sqrt(float(v) * middle), middle, math.sqrt(float(cut.W) * middle), float(cut.W),
        )[quarters]  # fmt: skip
        return single(float(t) / (below * 2.0**24))

    return cut.each(rule)


def _r(cut, t, v, floor, one):
    below = one * max(1000 * cut.n * v, min(floor, 1000 * cut.n) * cut.W)
    return single((float(t) * float(1000 * cut.n)) / (float(below) * 2.0**24))


def floored_mean(cut, floor):
    return cut.each(lambda c, senders: _r(cut, *_sums(cut, c, senders), floor, 1))


def count_mean(cut):
    def rule(c, senders):
        heavy = [(cut.w[i] * cut.counts[i][c], cut.x[i][c]) for i in senders]
        return q(sum(k * u for k, u in heavy), sum(k for k, _ in heavy))

    return cut.each(rule)


# -- by coordinate ---------------------------------------------------------------------------------------------------
def median(cut, zeros):
    cut = cut.everybody() if zeros else cut

    def rule(c, senders):
        running, low, high, whole = 0, None, None, sum(cut.w[i] for i in senders)
        for u, w in sorted((cut.x[i][c], cut.w[i]) for i in senders):
            running += w
            low = u if low is None and 2 * running >= whole else low
            high = u if high is None and 2 * running > whole else high
        return q(low + high, 2)

    return cut.each(rule)


def _untrimmed(values, cut):
    order = [i for _, i in sorted(values)]
    gone = len(order) * cut // 1000
    return order[gone : len(order) - gone]


def trimmed_mean(cut, /, **parameters):
    cut = cut.everybody() if parameters["zeros"] else cut

    def rule(c, senders):
        kept = _untrimmed([(cut.x[i][c], i) for i in senders], parameters["cut"])
        t, v = _sums(cut, c, kept)
        return q(t, v)

    return cut.each(rule)


# -- guarded ---------------------------------------------------------------------------------------------------------
def _shortened(cut, clip, rms):
    squares = [cut.dot(i, i) for i in range(len(cut.ids))]
    lengths = [math.isqrt((s * ONE) // sum(k) if rms else s) for s, k in zip(squares, cut.counts, strict=True)]
    reach = clip * lower_median(lengths)
    return [ONE if 1000 * length <= reach else ONE * reach // (1000 * length) for length in lengths]


def clipped_mean(cut, clip, rms):
    s = _shortened(cut, clip, rms)
    return cut.each(
        lambda c, senders: q(sum(cut.w[i] * s[i] * cut.x[i][c] for i in senders), ONE * sum(cut.w[i] for i in senders))
    )


def guarded_mean(cut, /, **parameters):
    s = _shortened(cut, parameters["clip"], parameters["rms"])

    def rule(c, senders):
        kept = _untrimmed([(s[i] * cut.x[i][c], i) for i in senders], parameters["cut"])
        top = sum(cut.w[i] * s[i] * cut.x[i][c] for i in kept)
        return _r(cut, top, sum(cut.w[i] for i in kept), parameters["floor"], ONE)

    return cut.each(rule)


# -- by distance -----------------------------------------------------------------------------------------------------
def _square(vector):
    return sum(v * v for v in vector)


def _krum_order(cut, faults):
    m, scores = len(cut.ids), []
    f = m * faults // 1000
    for i in range(m):
        far = sorted(_square([a - b for a, b in zip(cut.x[i], cut.x[j], strict=True)]) for j in range(m) if j != i)
        scores.append(sum(far[: min(m - 1, max(1, m - f - 2))]))
    return sorted(range(m), key=lambda i: scores[i]), f


def krum(cut, faults):
    return cut.mean(_krum_order(cut, faults)[0][:1])


def multi_krum(cut, faults):
    order, f = _krum_order(cut, faults)
    return cut.mean(order[: len(order) - f])


def adapter_soup(cut, keep, toward):
    m, likeness = len(cut.ids), []
    named = [j for j in range(m) if toward and cut.ids[j][:8] == f"{toward:08x}"]
    for i in range(m):
        towards = named or [j for j in range(m) if j != i]
        y = [sum(cut.w[j] * cut.x[j][c] for j in towards) for c in range(cut.P)]
        d = sum(a * b for a, b in zip(cut.x[i], y, strict=True))
        below = _square(cut.x[i]) * _square(y)
        likeness.append(Fraction(d * abs(d), below) if below else Fraction(0))
    order = sorted(range(m), key=lambda i: -likeness[i])
    return cut.mean(order[: math.ceil(Fraction(m * keep, 1000))])


def _far(cut, b, whole):
    centre = [sum(share * x[c] for share, x in zip(b, cut.x, strict=True)) for c in range(cut.P)]
    return [math.isqrt(_square([v - whole * u for v, u in zip(centre, x, strict=True)])) for x in cut.x]


def _centre(cut, b, whole):
    least = lower_median(b)

    def rule(c, senders):
        return q(sum(b[i] * cut.x[i][c] for i in senders), whole or max(sum(b[i] for i in senders), least))

    return cut.each(rule)


def geometric_median(cut, rounds, zeros):
    norms = [math.isqrt(_square(x)) for x in cut.x]
    middle = lower_median(norms)
    b = [w * (2**20 if norm <= middle else 2**20 * middle // norm) for w, norm in zip(cut.w, norms, strict=True)]
    whole = 2**20 * sum(cut.w)
    for _ in range(rounds):
        d = [max(far // whole, 1, middle // 1000) for far in _far(cut, b, whole)]
        p = [w * 2**128 // each for w, each in zip(cut.w, d, strict=True)]
        b = [2**30 * each // sum(p) for each in p]
        whole = sum(b)
    return _centre(cut, b, whole if zeros else None)


def centred_clipping(cut, rounds, radius, zeros):
    b, heavy = [0] * len(cut.ids), sum(cut.w)
    for _ in range(rounds):
        d = _far(cut, b, 2**30)
        t = lower_median(d) * radius // 1000
        p = [w * 2**30 if each <= t else w * (2**30 * t // each) for w, each in zip(cut.w, d, strict=True)]
        rest = heavy * 2**30 - sum(p)
        b = [(share * rest + each * 2**30) // (heavy * 2**30) for share, each in zip(b, p, strict=True)]
    return _centre(cut, b, 2**30 if zeros else None)


# -- tasks -----------------------------------------------------------------------------------------------------------
def task_arithmetic(cut, scale, minus):
    signs = [-1 if minus and m[:8] == f"{minus:08x}" else 1 for m in cut.ids]
    return cut.each(
        lambda c, senders: q(sum(signs[i] * cut.w[i] * cut.n * scale * cut.x[i][c] for i in senders), 1000 * cut.W)
    )


def _elected(cut, v, above, below):
    def rule(c, senders):
        whole = sum(cut.w[i] * v[i][c] for i in senders)
        agree = [i for i in senders if v[i][c] * whole > 0]
        return q(sum(above * cut.w[i] * v[i][c] for i in agree), below * sum(cut.w[i] for i in agree))

    return cut.each(rule)


def ties(cut, keep, scale):
    count, v = max(1, cut.P * keep // 1000), []
    for x in cut.x:
        kept = sorted(range(cut.P), key=lambda c: -abs(x[c]))[:count]
        v.append([u if c in kept else 0 for c, u in enumerate(x)])
    return _elected(cut, v, scale, 1000)


def _draws(cut, name):
    out = []
    for member, x, counts in zip(cut.ids, cut.x, cut.counts, strict=True):
        body = struct.pack(f"<I{cut.P}q{cut.P}i", cut.P, *x, *counts)
        register = hashlib.sha256(b"fishernet/register/v1\x00" + body).hexdigest()
        source = f"fishernet/draws/v1\x00{name}\x00{member}\x00{register}".encode()
        out.append(struct.unpack(f"<{cut.P}H", hashlib.shake_256(source).digest(2 * cut.P)))
    return out


def dare(cut, drop):
    draws, least = _draws(cut, "dare/1"), 65536 * drop // 1000

    def rule(c, senders):
        kept = sum(1000 * cut.w[i] * cut.x[i][c] for i in senders if draws[i][c] >= least)
        return q(kept, (1000 - drop) * sum(cut.w[i] for i in senders))

    return cut.each(rule)


def dare_ties(cut, drop):
    draws, least = _draws(cut, "dare-ties/1"), 65536 * drop // 1000
    v = [[u if draw >= least else 0 for u, draw in zip(x, ds, strict=True)] for x, ds in zip(cut.x, draws, strict=True)]
    return _elected(cut, v, 1000, 1000 - drop)


def della(cut, drop, window, scale):
    draws, v = _draws(cut, "della/1"), []
    for x, counts, ds in zip(cut.x, cut.counts, draws, strict=True):
        sent = sorted((c for c in range(cut.P) if counts[c] > 0), key=lambda c: -abs(x[c]))
        own, k = [0] * cut.P, len(sent)
        for r, c in enumerate(sent):
            t = min(max((65536 * ((2 * drop - window) * k + 2 * window * r)) // (2000 * k), 0), 65470)
            if ds[c] >= t:
                own[c] = round(float(x[c]) * 65536.0 / float(65536 - t))  # Python rounds halves to even
        v.append(own)
    return _elected(cut, v, scale, 1000)


RULES = {
    "contributor-mean/1": lambda cut: damped_mean(cut, 0), "sqrt-mean/1": lambda cut: damped_mean(cut, 2),
    "member-mean/1": lambda cut: damped_mean(cut, 4), "damped-mean/1": damped_mean, "floored-mean/1": floored_mean,
    "count-mean/1": count_mean, "median/1": median, "trimmed-mean/1": trimmed_mean, "clipped-mean/1": clipped_mean,
    "guarded-mean/1": guarded_mean, "krum/1": krum, "multi-krum/1": multi_krum, "adapter-soup/1": adapter_soup,
    "geometric-median/1": geometric_median, "centred-clipping/1": centred_clipping, "task-arithmetic/1": task_arithmetic,
    "ties/1": ties, "dare/1": dare, "dare-ties/1": dare_ties, "della/1": della,
}  # fmt: skip
