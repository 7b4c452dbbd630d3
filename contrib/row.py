"""What a row is: a plain text, a prompt with its completion, or a chat; its canonical bytes and digest.

Pure values: no store, no files, no tokens. Invariants: a row's texts are in Unicode NFC and otherwise untouched (never
trimmed); its answer is never blank; its canonical bytes are at most `MAX_ROW_BYTES`; equal contents have equal digests.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from contrib.errors import RowTooLarge, UnreadableRow
from protocol import canon
from protocol.canon import Json
from protocol.errors import Malformed, TooLarge
from protocol.ids import Digest, digest, digest_of

Kind: TypeAlias = Literal["text", "pair", "chat"]

MAX_ROW_BYTES: Final = 1 << 20
ROLES: Final = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a chat."""

    role: str  # one of ROLES
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One private row; only the fields of its kind are filled. Make it with `text_row`, `pair_row` or `chat_row`.

    Tags and subject say how it is filed, on its way into the store; they are no content, and no row that is read has them.
    """

    kind: Kind
    text: str = ""
    prompt: str = ""
    completion: str = ""
    messages: tuple[Message, ...] = ()
    tags: tuple[str, ...] = field(default=(), compare=False)
    subject: str | None = field(default=None, compare=False, repr=False)  # whom it is about, in the owner's words

    def canonical(self) -> bytes:
        """The canonical bytes of the content: what is stored, digested and committed to."""
        return canon.encode(self._content(), max_bytes=MAX_ROW_BYTES)

    def digest(self) -> Digest:
        """SHA-256 of the canonical bytes; equal rows have equal digests."""
        return digest(self.canonical())

    def split_key(self) -> Digest:
        """What the held-out draw looks at: the question where there is one (see `_question`), else the content."""
        question = self._question()
        return digest_of(question, max_bytes=MAX_ROW_BYTES) if question else self.digest()

    def answer(self) -> str | None:
        """The completion, or the last assistant message; None for a text."""
        if self.kind == "chat":
            return next(m.content for m in reversed(self.messages) if m.role == "assistant")
        return self.completion if self.kind == "pair" else None

    def with_answer(self, answer: str) -> Row:
        """The same question with another answer (turns after it are dropped); a text has no answer and is returned."""
        if self.kind == "pair":
            return pair_row(self.prompt, answer)
        if self.kind == "text":
            return self
        last = max(i for i, m in enumerate(self.messages) if m.role == "assistant")
        return chat_row([*self.messages[:last], Message(role="assistant", content=answer)])

    def learnable(self) -> bool:
        """Whether there is something to learn: a text, a completion, an assistant's answer."""
        answers = "".join(m.content for m in self.messages if m.role == "assistant")
        return bool({"text": self.text, "pair": self.completion, "chat": answers}[self.kind].strip())

    def columns(self) -> tuple[str, ...]:
        """The columns that are filled: text | prompt, completion | the roles of a chat; ascending."""
        if self.kind == "chat":
            return tuple(sorted({m.role for m in self.messages}))
        return ("text",) if self.kind == "text" else ("completion", "prompt")

    def characters(self) -> int:
        """Length of all texts in the row."""
        return len(self.text) + len(self.prompt) + len(self.completion) + sum(len(m.content) for m in self.messages)

    def _content(self) -> dict[str, Json]:
        if self.kind == "text":
            return {"text": self.text}
        if self.kind == "pair":
            return {"completion": self.completion, "prompt": self.prompt}
        return {"messages": [{"content": m.content, "role": m.role} for m in self.messages]}

    def _question(self) -> Json:
        """The prompt, or the turns before the first answer to a user; falsy for texts and answers to nothing."""
        roles = [m.role for m in self.messages]
        if "user" not in roles or "assistant" not in roles[roles.index("user") :]:
            return self.prompt if self.prompt.strip() else None
        first = roles.index("assistant", roles.index("user"))
        return [[m.role, m.content] for m in self.messages[:first]]


def text_row(text: str) -> Row:
    """A plain text.

    Raises:
        UnreadableRow: the text is blank or not valid Unicode.
        RowTooLarge: over `MAX_ROW_BYTES`.
    """
    return _checked(Row(kind="text", text=_nfc(text)), "the text", text)


def pair_row(prompt: str, completion: str) -> Row:
    """A prompt and the completion that is to be learnt. Raises as `text_row`."""
    return _checked(Row(kind="pair", prompt=_nfc(prompt), completion=_nfc(completion)), "the completion", completion)


def chat_row(messages: Sequence[Message]) -> Row:
    """A conversation with at least one assistant answer. Raises as `text_row`, also for a role outside `ROLES`."""
    for message in messages:
        if message.role not in ROLES:
            raise UnreadableRow(f"couldn't take row: the role {message.role[:40]!r} is none of {', '.join(ROLES)}")
    turns = tuple(Message(role=m.role, content=_nfc(m.content)) for m in messages)
    answers = "".join(m.content for m in turns if m.role == "assistant")
    return _checked(Row(kind="chat", messages=turns), "the assistant's answer", answers)


def _nfc(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _checked(row: Row, what: str, essential: str) -> Row:
    if not essential.strip():
        raise UnreadableRow(f"couldn't take row: {what} is missing or blank")
    try:
        row.canonical()
    except TooLarge:
        raise RowTooLarge(f"couldn't take row: it is over {MAX_ROW_BYTES} bytes; split it into several rows") from None
    except Malformed as e:
        raise UnreadableRow(f"couldn't take row: {e}") from None
    return row


def stored_row(content: bytes) -> Row:
    """The row whose canonical bytes are `content`, unchecked: for bytes that `Row.canonical` made.

    Law: `stored_row(row.canonical()) == row`.
    """
    value = json.loads(content)
    if "text" in value:
        return Row(kind="text", text=value["text"])
    if "prompt" in value:
        return Row(kind="pair", prompt=value["prompt"], completion=value["completion"])
    turns = tuple(Message(role=m["role"], content=m["content"]) for m in value["messages"])
    return Row(kind="chat", messages=turns)
