"""Promises of encoding: loss on the answers only, nothing over the length, the answer is never lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from contrib.encoding import IGNORED, Codec, Encoded, batch, chat_prompt, encode, encode_one
from contrib.errors import TokenizerUnfit
from contrib.row import Message, Row, chat_row, pair_row, text_row
from contrib.tokenizer import Files, Template

CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Drops what stands in <think> from all answers but the last, as templates of reasoning models do.
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BACKWARDS = "{% for m in messages | reverse %}{{ m.role }}: {{ m.content }}\n{% endfor %}"

SYSTEM = Message(role="system", content="Be brief.")
ASK, ANSWER = Message(role="user", content="Hi there"), Message(role="assistant", content="Hello!")
MORE, LAST = Message(role="user", content="And now?"), Message(role="assistant", content="Goodbye é.")


def tokenizer(template: str | None, *, bos: bool = False) -> Files:
    """A real byte-level tokenizer: one token for each byte, and the ChatML marks."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(t, special=True) for t in ("<|im_end|>", "<|im_start|>", "<pad>", "<s>")])
    if bos:
        from tokenizers.processors import TemplateProcessing

        made.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))])
    specials = {"eos_token": "<|im_end|>", "pad_token": "<pad>", "bos_token": "<s>"}
    return Files(tokenizer=made, specials=specials, template=template)


TOKENIZER = tokenizer(CHATML)
CODEC = TOKENIZER.codec()
PLAIN = tokenizer(None).codec()


def learnt(encoded: Encoded | None) -> list[str]:
    """The stretches of text that carry loss."""
    assert encoded is not None
    stretches: list[list[int]] = []
    before = False
    for token, counts in zip(encoded.ids, encoded.loss, strict=True):
        if counts:
            stretches = stretches if before else [*stretches, []]
            stretches[-1].append(token)
        before = counts
    return [text(stretch) for stretch in stretches]


def text(ids: Sequence[int]) -> str:
    return str(TOKENIZER.tokenizer.decode(list(ids), skip_special_tokens=False))


def test_text_is_learnt_whole_and_packed_into_blocks() -> None:
    rows = [text_row("alpha beta"), text_row("gamma"), text_row("delta epsilon")]
    blocks = list(encode(rows, CODEC, length=8))
    assert [len(b.ids) for b in blocks] == [8, 8, 8, 7]
    assert all(all(b.loss) for b in blocks)
    joined = "".join(text(b.ids) for b in blocks)
    assert joined == "alpha beta<|im_end|>gamma<|im_end|>delta epsilon<|im_end|>"


def test_pair_is_learnt_from_the_completion_on() -> None:
    encoded = encode_one(pair_row("Is it good? ", "yes"), CODEC, length=64)
    assert encoded is not None
    assert text(encoded.ids) == "Is it good? yes<|im_end|>"
    assert learnt(encoded) == ["yes<|im_end|>"]


def test_chat_is_learnt_in_the_assistants_answers_and_nowhere_else() -> None:
    row = chat_row([SYSTEM, ASK, ANSWER, MORE, LAST])
    encoded = encode_one(row, CODEC, length=512)
    assert learnt(encoded) == ["Hello!<|im_end|>", "Goodbye é.<|im_end|>"]
    turns = [{"role": m.role, "content": m.content} for m in row.messages]
    assert encoded is not None
    template = Template(CHATML, TOKENIZER.specials)
    assert text(encoded.ids) + "\n" == template.render(turns, False)
    assert text(encoded.ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi there<|im_end|>\n"
        "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\n"
        "<|im_start|>assistant\nGoodbye é.<|im_end|>"
    )


def test_prompt_of_an_answer_in_serving_is_what_stands_before_it_in_training() -> None:
    for codec in (CODEC, PLAIN):
        encoded = encode_one(chat_row([ASK, ANSWER]), codec, length=512)
        assert encoded is not None
        before = encoded.ids[: encoded.loss.index(True)]
        assert tuple(codec.tokens(chat_prompt([ASK], codec))) == before


def test_turns_after_the_last_answer_are_left_out() -> None:
    assert encode_one(chat_row([ASK, ANSWER, MORE]), CODEC, length=512) == encode_one(
        chat_row([ASK, ANSWER]), CODEC, length=512
    )


def test_template_that_rewrites_earlier_turns_teaches_the_last_answer_only() -> None:
    codec = tokenizer(FORGETFUL).codec()
    thought = Message(role="assistant", content="<think>hm</think>Hello!")
    assert learnt(encode_one(chat_row([ASK, thought, MORE, LAST]), codec, length=512)) == ["Goodbye é.<|im_end|>"]


def test_template_that_hides_the_answer_is_refused() -> None:
    with pytest.raises(TokenizerUnfit, match="chat template"):
        encode_one(chat_row([ASK, ANSWER]), tokenizer(BACKWARDS).codec(), length=512)


def test_template_that_refuses_a_role_is_a_clear_refusal() -> None:
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
    with pytest.raises(TokenizerUnfit, match="no system role"):
        encode_one(chat_row([SYSTEM, ASK, ANSWER]), tokenizer(strict).codec(), length=512)


def test_opening_line_of_the_assistant_is_context() -> None:
    for codec in (CODEC, PLAIN):
        assert learnt(encode_one(chat_row([LAST, ASK, ANSWER]), codec, length=512)) == ["Hello!<|im_end|>"]
        assert encode_one(chat_row([LAST]), codec, length=512) is None


def test_tokenizer_without_end_token_is_refused() -> None:
    made = replace(TOKENIZER, specials={"bos_token": "<s>"})
    with pytest.raises(TokenizerUnfit, match="end-of-sequence"):
        made.codec()


def test_chat_without_template_uses_the_plain_one() -> None:
    encoded = encode_one(chat_row([SYSTEM, ASK, ANSWER, MORE, LAST]), PLAIN, length=512)
    assert encoded is not None
    assert text(encoded.ids) == (
        "system: Be brief.\nuser: Hi there\nassistant: Hello!<|im_end|>\nuser: And now?\nassistant: Goodbye é.<|im_end|>"
    )
    assert learnt(encoded) == ["Hello!<|im_end|>", "Goodbye é.<|im_end|>"]


def test_begin_token_stands_where_the_tokenizer_puts_it() -> None:
    codec = tokenizer(None, bos=True).codec()
    for row in (text_row("some text"), pair_row("q", "a"), chat_row([ASK, ANSWER])):
        encoded = encode_one(row, codec, length=64)
        assert encoded is not None
        assert encoded.ids[:1] == codec.start != ()
        assert encoded.ids.count(codec.start[0]) == 1
    assert CODEC.start == ()


def test_empty_prompt_gets_a_context_without_loss() -> None:
    encoded = encode_one(pair_row("", "answer"), CODEC, length=64)
    assert encoded is not None
    assert encoded.ids[0] == CODEC.eos
    assert not encoded.loss[0]
    assert learnt(encoded) == ["answer<|im_end|>"]


def test_row_with_an_empty_answer_is_left_out() -> None:
    rows = [Row(kind="pair", prompt="q"), Row(kind="chat", messages=(ASK, Message(role="assistant", content=" ")))]
    assert list(encode(rows, CODEC, length=64)) == []


def test_long_prompt_is_cut_from_its_beginning() -> None:
    encoded = encode_one(pair_row("x" * 100 + "near", "yes"), CODEC, length=16)
    assert encoded is not None
    assert text(encoded.ids) == "xxxxxxxxnearyes<|im_end|>"
    assert learnt(encoded) == ["yes<|im_end|>"]


def test_long_answer_leaves_a_quarter_to_its_prompt() -> None:
    encoded = encode_one(pair_row("0123456789", "a" * 100), CODEC, length=16)
    assert encoded is not None
    assert text(encoded.ids) == "6789" + "a" * 12


ROW = st.one_of(
    st.builds(text_row, st.text("abc é", min_size=1, max_size=90).filter(str.strip)),
    st.builds(pair_row, st.text("abc é", max_size=90), st.text("XYZ", min_size=1, max_size=90)),
    st.builds(
        lambda n, m, answers: chat_row(
            [
                turn
                for answer in answers
                for turn in (Message(role="user", content="q" * n), Message(role="assistant", content=answer * m))
            ]
        ),
        st.integers(0, 60),
        st.integers(1, 60),
        st.lists(st.sampled_from("XYZ"), min_size=1, max_size=3),
    ),
)


@given(st.lists(ROW, max_size=6), st.integers(8, 64), st.sampled_from([CODEC, PLAIN]))
def test_no_sequence_is_too_long_and_every_one_teaches_only_answers(rows: list[Row], length: int, codec: Codec) -> None:
    taught = list(encode(rows, codec, length=length))
    assert taught == list(encode(iter(rows), codec, length=length))
    assert all(1 < len(s.ids) <= length and len(s.ids) == len(s.loss) for s in taught)
    assert len(taught) >= sum(row.kind != "text" for row in rows)
    for row in rows:
        if row.kind != "text":
            stretches = learnt(encode_one(row, codec, length=length))
            assert stretches
            assert all(set(s.replace("<|im_end|>", "")) <= set("XYZ") for s in stretches)


def test_batch_pads_to_its_longest_and_ignores_padding_and_prompts() -> None:
    sequences = list(encode([pair_row("ab", "c"), pair_row("", "d")], CODEC, length=32))
    made = batch(sequences, pad=CODEC.pad)
    assert made.ids.shape == made.labels.shape == made.mask.shape == (2, 4)
    assert made.mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert made.ids[1, 3] == CODEC.pad
    assert (made.labels == IGNORED).tolist() == [[True, True, False, False], [True, False, False, True]]
    assert np.array_equal(made.ids[made.labels != IGNORED], made.labels[made.labels != IGNORED])


def test_codec_needs_no_tokenizer_object() -> None:
    codec = Codec(tokens=lambda t: list(t.encode()), start=(), eos=256, eos_text="\0", pad=256, render=None)
    encoded = encode_one(pair_row("q", "a"), codec, length=8)
    assert encoded == Encoded(ids=(113, 97, 256), loss=(False, True, True))


def test_too_small_a_length_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="length 7"):
        list(encode([], CODEC, length=7))
