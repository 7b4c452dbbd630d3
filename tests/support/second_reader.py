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


def contribution(blob):
    """Card and update of a contribution whose signature holds."""
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
