"""Pieces of text join to the decoded text, and never show half a character or a piece of a stop sequence."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.serving.engine.decoding import Detokenizer, StopFilter

MARK = "�"


def decode_bytes(ids: Sequence[int]) -> str:
    return bytes(ids).decode("utf-8", errors="replace")


def decode_fallback(ids: Sequence[int]) -> str:
    """As decoders with byte fallback do: a run of bytes that is not UTF-8 becomes one mark for each byte."""
    try:
        return bytes(ids).decode("utf-8")
    except UnicodeDecodeError:
        return MARK * len(ids)


def words(ids: Sequence[int]) -> str:
    """A tokenizer whose first token loses its leading space."""
    return " ".join(f"w{i}" for i in ids)


def pieces(ids: Sequence[int], decode: object) -> list[str]:
    stream = Detokenizer(decode)  # type: ignore[arg-type]
    return [*(stream.push(token) for token in ids), stream.finish()]


@given(st.text(max_size=60))
def test_text_comes_out_whole_and_without_half_characters(text: str) -> None:
    found = pieces(text.encode(), decode_bytes)
    assert "".join(found) == text
    if MARK not in text:
        assert not any(MARK in piece for piece in found)


@given(st.binary(max_size=60))
def test_broken_bytes_come_out_as_one_decoding_would_show_them(data: bytes) -> None:
    assert "".join(pieces(data, decode_bytes)) == decode_bytes(data)


def test_broken_bytes_do_not_hold_back_what_follows() -> None:
    stream = Detokenizer(decode_bytes)
    assert "".join(stream.push(byte) for byte in b"\xff\xfe\xff ok") == f"{MARK * 3} ok"


@pytest.mark.parametrize("text", ["😀", "é😀ü", "你好"])
def test_characters_of_several_byte_tokens_come_out_whole(text: str) -> None:
    found = pieces(text.encode(), decode_fallback)
    assert "".join(found) == text
    assert not any(MARK in piece for piece in found)


@given(st.lists(st.integers(0, 99), max_size=40))
def test_leading_spaces_survive_the_window(ids: list[int]) -> None:
    assert "".join(pieces(ids, words)) == words(ids)


def test_text_is_given_at_once_when_nothing_is_pending() -> None:
    stream = Detokenizer(decode_bytes)
    assert [stream.push(byte) for byte in b"abc"] == ["a", "b", "c"]


@given(st.text("ab<>", max_size=30), st.lists(st.text("ab<>", min_size=1, max_size=4), max_size=3), st.integers(1, 5))
def test_text_ends_before_the_first_stop_sequence_however_it_is_cut(text: str, stops: list[str], size: int) -> None:
    stop = StopFilter(stops)
    out, at = "", 0
    while at < len(text) and not stop.stopped:
        out += stop.push(text[at : at + size])
        at += size
    out += stop.finish()
    found = [text.find(s) for s in stops if s in text]
    if not found:
        assert out == text
        return
    assert stop.stopped
    assert text.startswith(out)
    assert not any(s in out for s in stops)
    if size == 1:  # the sequence that is complete first ends the text
        first = min(text.find(s) + len(s) for s in stops if s in text)
        assert out == text[: min(text[:first].find(s) for s in stops if s in text[:first])]


def test_stop_sequence_over_three_pieces_is_never_seen() -> None:
    stop = StopFilter(["<|end|>"])
    assert [stop.push("so <|"), stop.push("en"), stop.push("d|> more")] == ["so ", "", ""]
    assert stop.stopped
    assert stop.finish() == ""


def test_false_start_of_a_stop_sequence_is_given_later() -> None:
    stop = StopFilter(["\n\n"])
    assert [stop.push("a\n"), stop.push("b\n"), stop.finish()] == ["a", "\nb", "\n"]
