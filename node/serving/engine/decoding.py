"""Token ids to text, piece by piece: never half a character, never a piece of a stop sequence.

Pure: it is given a function that decodes ids and knows neither model nor tokenizer.

Invariant: the pieces joined are the decoded text, cut before the first stop sequence; a piece once given is never taken
back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "�"
MOST_PENDING = 3  # bytes of a character that is not complete yet; some decoders show each as one replacement character


class Detokenizer:
    """Turns a growing list of ids into pieces of text.

    Only a short window is decoded at each step: the ids behind the last clean cut, and those before them back to the cut
    before, because what a token looks like may depend on its left neighbour (a leading space).
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._left = self._cut = 0  # the window is ids[left:]; ids[left:cut] have been given completely
        self._context = ""  # text of ids[left:cut]
        self._given = ""  # what has been given of the text behind it

    def push(self, token: int) -> str:
        """Take one more id; return the text that is certain now."""
        self._ids.append(token)
        text = self._behind()
        pending = len(text) - len(text.rstrip(REPLACEMENT))
        stable = text[: len(text) - min(pending, MOST_PENDING)]
        piece = self._give(stable)
        if not pending and text:
            self._left, self._cut = self._cut, len(self._ids)
            self._context, self._given = self._decode(self._ids[self._left : self._cut]), ""
        return piece

    def finish(self) -> str:
        """The rest, with a replacement character where the last character stayed incomplete."""
        return self._give(self._behind())

    def _behind(self) -> str:
        """Text of ids[cut:]. Some decoders let one incomplete character spoil those before it: then without context."""
        whole = self._decode(self._ids[self._left :])
        if whole.startswith(self._context):
            return whole[len(self._context) :]
        return self._decode(self._ids[self._cut :])

    def _give(self, text: str) -> str:
        if len(text) <= len(self._given):
            return ""
        piece, self._given = text[len(self._given) :], text
        return piece


class StopFilter:
    """Lets text through up to the first stop sequence, also one that is spread over several pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """Take a piece; return what cannot be the beginning of a stop sequence."""
        if self.stopped:
            return ""
        text = self._held + piece
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back for a stop sequence that did not come."""
        rest, self._held = ("", "") if self.stopped else (self._held, "")
        return rest


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, but not all of it."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
