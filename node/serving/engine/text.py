"""Text to token ids and back, by the files of a model folder: `tokenizer.json`, its config, its chat template.

The files are read by `contrib.tokenizer`, as training reads them. Knows no weights and no request.

Invariant: ids, rendered chats and decoded text equal those of AutoTokenizer on the same folder, so that serving reads a prompt
exactly as training did.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any, Final

from contrib.encoding import chat_prompt
from contrib.errors import TokenizerUnfit
from contrib.row import Message
from contrib.tokenizer import read
from contrib.weights import read_json
from node.errors import JobRefused
from node.ports import Chat, Prompt, Tokens
from protocol.errors import Refused

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")  # how byte-fallback vocabularies spell a byte
_READ = (  # the files that a tokenizer, its template and its end tokens come from
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("config.json", "generation_config.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt"),
)
_SPACE = "\u2581"  # how they spell a space


class Text:
    """The tokenizer and chat template of one model folder. Encoding and decoding may run in different threads."""

    def __init__(self, folder: Path) -> None:
        """Read the folder.

        Raises:
            JobRefused: a file is missing or damaged, or the tokenizer names no end token (reason "wrong-model").
        """
        self.folder, self.content = folder, content_of(folder)
        try:
            files = read(folder)
            self.codec = files.codec()
            shape: Any = read_json(folder / "config.json")
            self.vocabulary = int(shape.get("vocab_size") or shape["text_config"]["vocab_size"])
            self.ends = _ends(folder, self.codec.eos)  # ids that end an answer
        except Refused as e:
            raise JobRefused(str(e), reason="wrong-model") from e
        except (KeyError, TypeError, ValueError) as e:
            raise JobRefused(f"couldn't read the config in {folder}: {e}", reason="wrong-model") from e
        self._tokenizer = files.tokenizer
        self.bos, self.eos = files.id_of("bos_token"), self.codec.eos
        decoder = self._tokenizer.decoder
        self._kinds = "" if decoder is None else decoder.__getstate__().decode()  # its JSON
        self._added = {number: token.content for number, token in self._tokenizer.get_added_tokens_decoder().items()}
        self._texts: dict[int, tuple[str, bytes]] = {}

    def moved(self, folder: Path) -> Text | None:
        """The same text by the equal files of another folder, None when they are not equal.

        Reading a tokenizer holds up all threads of the process for the time of several steps; a new version of a base most
        often has the tokenizer of the one before.
        """
        if content_of(folder) != self.content:
            return None
        found = copy(self)
        found.folder = folder
        return found

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, a conversation (by the model's own chat template) or given ids; never none.

        Raises:
            JobRefused: messages that the template refuses ("bad_messages"), ids outside the vocabulary ("bad_tokens").
        """
        try:
            match prompt:
                case str():
                    ids = self._tokenizer.encode(prompt).ids
                case Tokens():
                    ids = list(prompt.ids)
                case Chat():
                    turns = [Message(role=turn["role"], content=turn["content"]) for turn in prompt.messages]
                    ids = list(self.codec.tokens(chat_prompt(turns, self.codec)))
        except TokenizerUnfit as e:
            raise JobRefused(str(e), reason="bad_messages") from e
        except (UnicodeEncodeError, TypeError) as e:
            raise JobRefused("couldn't read prompt: it is not Unicode text", reason="bad_tokens") from e
        if not ids:
            ids = [self.eos if self.bos is None else self.bos]
        if not all(type(token) is int and 0 <= token < self.vocabulary for token in ids):
            raise JobRefused("couldn't read prompt: it has token ids that the model does not know", reason="bad_tokens")
        return list(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` without special tokens, spaces as they are."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def token_text(self, token: int) -> tuple[str, bytes]:
        """One token by itself: as text, with a replacement character for half a character, and as its bytes."""
        if token not in self._texts:
            raw = self._raw(token)
            self._texts[token] = raw.decode("utf-8", errors="replace"), raw
        return self._texts[token]

    def _raw(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        piece = self._tokenizer.id_to_token(token)
        if piece is None:
            return b""  # the model's table is longer than the tokenizer's
        kinds = self._kinds
        if '"ByteLevel"' in kinds:
            return b"".join(bytes([_BYTES[letter]]) if letter in _BYTES else letter.encode() for letter in piece)
        if '"ByteFallback"' in kinds and (byte := _BYTE_TOKEN.fullmatch(piece)):
            return bytes([int(byte[1], 16)])
        if _SPACE in piece and ('"Metaspace"' in kinds or '"Replace"' in kinds):
            return piece.replace(_SPACE, " ").encode()
        return str(self._tokenizer.decode([token], skip_special_tokens=False)).encode() or piece.encode()


def content_of(folder: Path) -> str:
    """A digest of all that `Text` reads."""
    state = hashlib.sha256()
    for name in _READ:
        data = (folder / name).read_bytes() if (folder / name).is_file() else b""
        state.update(f"{name}\0{len(data)}\0".encode() + data)
    return state.hexdigest()


def _ends(folder: Path, eos: int) -> frozenset[int]:
    """Ids that end an answer: those of the generation settings (else of the model) and the tokenizer's own."""
    settings = folder / "generation_config.json"
    named: Any = read_json(settings if settings.is_file() else folder / "config.json").get("eos_token_id")
    found = [*named] if isinstance(named, list) else [named]
    return frozenset(int(token) for token in (*found, eos) if token is not None)


def _byte_letters() -> dict[str, int]:
    """The letters by which byte-level vocabularies spell bytes (GPT-2's table): printable ones stand for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}


_BYTES: Final = _byte_letters()
