"""The card in as few bytes as it needs without a dictionary: digests as they are, numbers as varints (FORMAT.md, "Card").

Knows no keys and no update. Law: `decode(encode(card)) == card`, and `decode` accepts no other bytes than `encode` makes.
"""

from __future__ import annotations

from protocol.canon import MAX_INT, Json
from protocol.card import Card
from protocol.errors import Malformed, NotCanonical

DIGESTS = ("collective", "member", "epoch", "base", "view", "train_root", "held_out_root")
NUMBERS = (
    *("number", "train_rows", "steps", "tokens", "epsilon_micro", "density_ppm", "value_bits"),
    *("coordinates", "sent", "norm_micro", "loss_before", "loss_after"),
)
_DIGEST_BYTES = 32
_MOST_WIDTH = 8  # bytes of a varint below 2^53
_MOST_TEXT = 64


def encode(card: Card) -> bytes:
    """Return the bytes of `card`: seven digests, twelve varints, selection, libraries by name."""
    out = bytearray()
    for name in DIGESTS:
        out += bytes.fromhex(getattr(card, name))
    for name in NUMBERS:
        value = getattr(card, name)
        out += _varint((0 if value is None else value + 1) if name == "epsilon_micro" else value)
    out += _text(card.selection) + _varint(len(card.libraries))
    for library in sorted(card.libraries):
        out += _text(library) + _text(card.libraries[library])
    return bytes(out)


def decode(data: bytes) -> Card:
    """Return the card whose bytes are `data`.

    Raises:
        Malformed: cut off, too long, or a field out of range.
        NotCanonical: a number longer than it needs to be, or libraries not in ascending order.
    """
    reader = _Reader(data)
    fields: dict[str, Json] = {name: reader.take(_DIGEST_BYTES).hex() for name in DIGESTS}
    for name in NUMBERS:
        fields[name] = reader.varint()
    epsilon = fields["epsilon_micro"]
    fields["epsilon_micro"] = epsilon - 1 if isinstance(epsilon, int) and epsilon else None
    fields["selection"] = reader.text()
    count = reader.varint()
    if 2 * count > len(data):
        raise Malformed("couldn't read card: more libraries than it has bytes")
    fields["libraries"] = {reader.text(): reader.text() for _ in range(count)}
    reader.finish()
    card = Card.of(fields)
    if encode(card) != data:
        raise NotCanonical("couldn't read card: its bytes are not the canonical ones")
    return card


class _Reader:
    """Takes values from the front of bytes."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> bytes:
        piece = self._data[self._at : self._at + count]
        if len(piece) != count:
            raise Malformed("couldn't read card: it is cut off")
        self._at += count
        return piece

    def varint(self) -> int:
        value = 0
        for place in range(_MOST_WIDTH):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << 7 * place
            if byte < 0x80:
                return value
        raise Malformed(f"couldn't read card: a number over {MAX_INT}")

    def text(self) -> str:
        size = self.take(1)[0]
        if size > _MOST_TEXT:
            raise Malformed(f"couldn't read card: a name of {size} bytes, the limit is {_MOST_TEXT}")
        try:
            return self.take(size).decode("ascii")
        except UnicodeDecodeError:
            raise Malformed("couldn't read card: a name is not ASCII") from None

    def finish(self) -> None:
        if self._at != len(self._data):
            raise Malformed("couldn't read card: something follows it")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _text(text: str) -> bytes:
    return bytes([len(text)]) + text.encode("ascii")
