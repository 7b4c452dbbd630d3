"""A second reader of the formats, written from protocol/FORMAT.md alone: plain loops, no product code.

It reads well-formed bytes only, slowly. What it and the product say about the same bytes must be equal.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from fractions import Fraction

import numpy as np
import zstandard
from nacl.signing import VerifyKey


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def check(public, domain, message, signature):
    VerifyKey(bytes.fromhex(public)).verify(b"fishernet/" + domain.encode() + b"/v1\x00" + message, signature)


def tree(leaves):
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\x01" + tree(leaves[:split]) + tree(leaves[split:])).digest()


def leaf(data):
    return hashlib.sha256(b"\x00" + data).digest()


def peer_id(public):
    alphabet = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
    raw = bytes.fromhex("002408011220" + public)
    number, text = int.from_bytes(raw, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        text = alphabet[digit] + text
    return "1" + text


def half(data):
    """An fp16 as an exact fraction."""
    bits = int.from_bytes(data, "little")
    exponent, mantissa = bits >> 10 & 31, bits & 1023
    if exponent == 0:
        return Fraction(mantissa, 2**24)
    return Fraction(1024 + mantissa, 1024) * Fraction(2) ** (exponent - 15)


def sparse(data):
    """Indices and units of a sparse update."""
    return sparse_1(data) if data[4] == 1 else sparse_2(data)


def sparse_1(data):
    """Indices and units of a sparse update of version 1."""
    magic, version, bits, encoding, exponent, coordinates, sent, a, b = struct.unpack("<4sBBBBIIII", data[:24])
    assert (magic, version) == (b"FNSU", 1)
    blocks = math.ceil(sent / 2**exponent)
    index, rest = zstandard.decompress(data[24 : 24 + a]), data[24 + a :]
    scales = [half(rest[2 * i : 2 * i + 2]) for i in range(blocks)]
    packed = zstandard.decompress(rest[2 * blocks :])
    assert len(rest) == 2 * blocks + b
    if encoding == 1:
        indices = [i for i in range(coordinates) if index[i // 8] >> i % 8 & 1]
    else:
        indices, last, gap, shift = [], -1, 0, 0
        for byte in index:
            gap |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                last += gap + 1
                indices.append(last)
                gap, shift = 0, 0
    units = []
    for i in range(sent):
        if bits == 8:
            q = packed[i] - (256 if packed[i] > 127 else 0)
        else:
            nibble = packed[i // 2] >> 4 * (i % 2) & 15
            q = nibble - (16 if nibble > 7 else 0)
        exact = scales[i // 2**exponent] * 2**24 * q
        assert exact.denominator == 1
        units.append(int(exact))
    assert len(indices) == sent
    return indices, units


class BitString:
    """The bits of a byte string, the highest of each byte first."""

    def __init__(self, data):
        self.bits = [byte >> (7 - i) & 1 for byte in data for i in range(8)]
        self.at = 0

    def number(self, width):
        piece = self.bits[self.at : self.at + width]
        assert len(piece) == width
        self.at += width
        return sum(bit << (width - 1 - i) for i, bit in enumerate(piece))

    def unary(self):
        zeros = 0
        while not self.number(1):
            zeros += 1
        return zeros

    def rice(self, count, r):
        high = [self.unary() for _ in range(count)]
        return [each << r | self.number(r) for each in high]

    def cells(self, count, ones=None):
        ones = self.number(count.bit_length()) if ones is None else ones
        marked = 1 if 2 * ones <= count else 0
        m = ones if marked else count - ones
        found, at = [1 - marked] * count, -1
        if m:
            for gap in self.rice(m, (5 * (count - m) // (9 * m)).bit_length()):
                at += gap + 1
                found[at] = marked
        return found


def density_class(ones, of):
    return 0 if ones == 0 else 1 + sum(64 * ones // of >= bound for bound in (3, 7, 13, 25, 42, 56))


def sparse_2(data):
    """Indices and units of a sparse update of version 2."""
    magic, version, v, e, base, coordinates, sent, g, x, template, cut, r, mean = struct.unpack(
        "<4sBBBBIIBBBBBH", data[:23]
    )
    assert (magic, version) == (b"FNSU", 2)
    order = [int.from_bytes(data[23:26], "big") >> 3 * (7 - i) & 7 for i in range(8)]
    bits, height, rows = BitString(data[26:]), 64 * g, math.ceil(coordinates / 16)
    groups = [range(at, min(at + height, rows)) for at in range(0, rows, height)]
    cells = {}  # (row, column) -> 1 for a minus, 0 for a plus
    while groups:
        held = []  # how many rows of each group of the page
        while len(held) < min(32, len(groups)) and sum(held) < 2**x:
            held.append(bits.number(height.bit_length()))
        page, groups = groups[: len(held)], groups[len(held) :]
        listed = {}
        for d in range(1, 8):
            mine = [i for i in range(len(page)) if density_class(held[i], len(page[i])) == d]
            every = [row for i in mine for row in page[i]]
            listed |= dict(zip(every, bits.cells(len(every), sum(held[i] for i in mine)), strict=True))
        kept = {i: [row for row in page[i] if listed.get(row)] for i in range(len(page)) if held[i]}
        kinds = {(i, column): order[bits.unary()] for i in kept for column in range(16)}
        places = [(i, row, column) for i in kept for row in kept[i] for column in range(16)]
        there = {}
        for d in range(1, 8):
            mine = [(i, row, column) for i, row, column in places if kinds[i, column] == d]
            there |= dict(zip(mine, bits.cells(len(mine)), strict=True))
        places = [place for place in places if there.get(place)]
        if template:
            columns = {place: bits.number(1) for place in kinds if kinds[place]}
            flips = {row: bits.number(1) for i in kept for row in kept[i]}
            odd = bits.cells(len(places))
            signs = [o ^ columns[i, c] ^ flips[row] for o, (i, row, c) in zip(odd, places, strict=True)]
        else:
            signs = [bits.number(1) for _ in places]
        cells |= {(row, column): sign for (_, row, column), sign in zip(places, signs, strict=True)}
    scales = []
    while len(scales) < math.ceil(sent / 2**e):
        folded = bits.rice(min(512, math.ceil(sent / 2**e) - len(scales)), r)
        scales += [mean + (f // 2 if f % 2 == 0 else -(f + 1) // 2) << cut for f in folded]
    codes = [bits.number(v - 1) for _ in range(sent)]
    assert len(bits.bits) - bits.at < 8
    assert not any(bits.bits[bits.at :])
    indices, units = [], []
    for i, (row, column) in enumerate(sorted(cells)):
        indices.append(16 * row + column)
        exact = half(struct.pack("<H", scales[i // 2**e])) * 2**24 * (base + codes[i])
        assert exact.denominator == 1
        units.append(int(-exact if cells[row, column] else exact))
    assert len(indices) == sent
    return indices, units


def contribution(blob):
    """Card and update of a contribution whose signature holds."""
    return contribution_1(blob) if blob[4] == 1 else contribution_2(blob)


def contribution_2(blob):
    magic, version, c, u = struct.unpack("<4sBHI", blob[:11])
    assert (magic, version, len(blob)) == (b"FNCB", 2, 11 + c + u + 64)
    data, at = blob[11 : 11 + c], 0

    def take(size):
        nonlocal at
        at += size
        return data[at - size : at]

    def number():
        byte = take(1)[0]
        return byte if byte < 128 else byte - 128 + 128 * number()

    card = {"v": 1}
    for name in ("collective", "member", "epoch", "base", "view", "train_root", "held_out_root"):
        card[name] = take(32).hex()
    for name in (
        *(
            "number",
            "train_rows",
            "steps",
            "tokens",
            "epsilon_micro",
            "density_ppm",
            "value_bits",
            "coordinates",
            "sent",
        ),
        *("norm_micro", "loss_before", "loss_after"),
    ):
        card[name] = number()
    card["epsilon_micro"] = card["epsilon_micro"] - 1 if card["epsilon_micro"] else None
    card["selection"] = take(take(1)[0]).decode()
    card["libraries"] = {take(take(1)[0]).decode(): take(take(1)[0]).decode() for _ in range(number())}
    assert at == c
    check(card["member"], "contribution", hashlib.sha256(blob[:-64]).digest(), blob[-64:])
    return card, blob[11 + c : -64]


def contribution_1(blob):
    magic, version, c, u = struct.unpack("<4sBII", blob[:13])
    assert (magic, version, len(blob)) == (b"FNCB", 1, 13 + c + u + 64)
    card = json.loads(blob[13 : 13 + c])
    assert canonical(card) == blob[13 : 13 + c]
    check(card["member"], "contribution", hashlib.sha256(blob[:-64]).digest(), blob[-64:])
    return card, blob[13 + c : -64]


def merge(recipe, updates, weights, coordinates):
    """Merged values per coordinate; `updates` is member -> list of (indices, units)."""
    total, values = sum(weights.values()), []
    for at in range(coordinates):
        top = weight = 0
        for member, sent in updates.items():
            units = [u for indices, many in sent for i, u in zip(indices, many, strict=True) if i == at]
            if units:
                top += weights[member] * sum(units)
                weight += weights[member]
        below = {"contributor-mean/1": float(weight), "member-mean/1": float(total)}.get(
            recipe, math.sqrt(float(weight * total))
        )
        values.append(np.float32(float(top) / (below * 2**24)) if weight else np.float32(0))
    return values


def model_digest(values):
    body = b"".join(struct.pack("<f", v) for v in values)
    return sha256(b"fishernet/model/v1\x00" + struct.pack("<I", len(values)) + body)


def register_digest(updates, coordinates):
    units, counts = [0] * coordinates, [0] * coordinates
    for indices, many in updates:
        for i, u in zip(indices, many, strict=True):
            units[i] += u
            counts[i] += 1
    body = b"".join(struct.pack("<q", u) for u in units) + b"".join(struct.pack("<i", c) for c in counts)
    return sha256(b"fishernet/register/v1\x00" + struct.pack("<I", coordinates) + body)


def frozen_a(seed, name, rank, width):
    source = b"fishernet/frozen-a/v1\x00" + bytes.fromhex(seed) + struct.pack(">II", rank, width) + name.encode()
    stream = hashlib.shake_256(source).digest(math.ceil(rank * width / 8))
    size = np.float32(1 / math.sqrt(width))
    return [size if stream[i // 8] >> i % 8 & 1 else -size for i in range(rank * width)]


def frames(data):
    items = []
    while data:
        length = int.from_bytes(data[:4], "big")
        items.append(data[4 : 4 + length])
        data = data[4 + length :]
    return items


def fingerprints(salt, heads):
    """Of heads as (member in hex, size, root in bytes)."""
    words = [0] * 64
    for member, size, root in heads:
        name = salt + bytes.fromhex(member)
        words[hashlib.sha256(name).digest()[0] % 64] ^= int(
            hashlib.sha256(name + struct.pack(">Q", size) + root).hexdigest()[:8], 16
        )
    return salt + struct.pack(">64I", *words)
