"""The engine reads and writes text exactly as training does, without loading the library that training uses."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contrib.encoding import codec_of
from contrib.errors import CorruptModel, UnknownModel
from contrib.models import find, tiny_folder
from contrib.row import Message
from node.errors import JobRefused
from node.home import model_cache
from node.ports import Chat, Tokens
from node.serving.engine.text import Text

ODD = [
    "The people of the United States",
    " leading and trailing ",
    "Gr\u00fc\u00dfe \U0001f600 \u4f60\u597d\u2581 \ufffd",
    "<|im_start|>user\nnot a turn<|im_end|><|endoftext|>",
    "a\r\n\tb\u00a0c\u200b\x00d",
    "don't  1234567 3.14 x" * 20,
]
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Gr\u00fc\u00dfe? {{ 1 + 1 }} {% if %}"},
    {"role": "assistant", "content": "  \n"},
    {"role": "user", "content": ""},
]


def auto(folder: Path) -> Any:
    from transformers import AutoTokenizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoTokenizer.from_pretrained(folder)


def smollm2() -> Path:
    try:
        return find("smollm2-135m", model_cache()).path
    except (UnknownModel, CorruptModel):
        pytest.skip("the packaged SmolLM2 is not in the cache")


@pytest.fixture(scope="module", params=["tiny", "smollm2"])
def pair(request: pytest.FixtureRequest) -> tuple[Text, Any]:
    folder = tiny_folder() if request.param == "tiny" else smollm2()
    return Text(folder), auto(folder)


def test_text_is_the_one_of_auto_tokenizer(pair: tuple[Text, Any]) -> None:
    text, reference = pair
    for prompt in ODD:
        ids = reference(prompt)["input_ids"]
        assert text.encode(prompt) == ids
        assert text.encode(Tokens(ids=tuple(ids))) == ids
        assert list(text.codec.tokens(prompt)) == reference(prompt, add_special_tokens=False)["input_ids"]
        assert text.decode(ids) == reference.decode(ids, skip_special_tokens=True)
    assert text.encode("") == [reference.bos_token_id]
    assert (text.bos, text.eos) == (reference.bos_token_id, reference.eos_token_id)
    assert reference.eos_token_id in text.ends


def test_codec_is_the_one_that_training_uses(pair: tuple[Text, Any]) -> None:
    text, reference = pair
    ours, theirs = text.codec, codec_of(reference)
    assert (ours.start, ours.eos, ours.eos_text, ours.pad) == (theirs.start, theirs.eos, theirs.eos_text, theirs.pad)
    assert ours.render is not None
    assert theirs.render is not None
    for length in range(1, len(TURNS) + 1):
        for opens in (True, False):
            assert ours.render(TURNS[:length], opens) == theirs.render(TURNS[:length], opens)
    chat = Chat(messages=tuple(TURNS))
    assert text.encode(chat) == reference.apply_chat_template(TURNS, add_generation_prompt=True)["input_ids"]


def test_tokens_one_by_one_are_the_bytes_of_the_text(pair: tuple[Text, Any]) -> None:
    text, _ = pair
    for prompt in ODD:
        shown = [text.token_text(token) for token in text.encode(prompt)]
        assert b"".join(raw for _, raw in shown) == prompt.encode()
        assert all(raw.decode(errors="replace") == piece for piece, raw in shown)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=80))
def test_any_text_survives(prompt: str) -> None:
    text = TINY
    assert text.decode(text.encode(prompt or " ")) == (prompt or " ")


TINY = Text(tiny_folder())


def test_messages_that_the_template_refuses_are_a_bad_request(tmp_path: Path) -> None:
    refuses = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": "{{ raise_exception('roles must alternate') }}",
    }
    text = Text(folder_with(tmp_path, spaced(), refuses))
    with pytest.raises(JobRefused, match="roles must alternate") as caught:
        text.encode(Chat(messages=tuple(TURNS)))
    assert caught.value.reason == "bad_messages"


# -- other folders ----------------------------------------------------------------------------------------------------
def folder_with(out: Path, tokenizer: Any, config: dict[str, Any]) -> Path:
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(json.dumps(config))
    (out / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 400, "eos_token_id": [2, 7]}))
    return out


def spaced() -> Any:
    """A vocabulary as Llama 2 has it: marked spaces, byte fallback, a begin token put before each text."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import BPE

    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "b", "\u2581a", "ab"]
    vocab = {word: at for at, word in enumerate(words)}
    merges = [("\u2581", "a"), ("a", "b")]
    found = Tokenizer(BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    found.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="first", split=False)
    found.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    found.post_processor = processors.TemplateProcessing(
        single="<s>:0 $A:0", pair="<s>:0 $A:0 <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    return found


@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", "LlamaTokenizerFast"])
def test_byte_fallback_and_begin_token_are_those_of_auto_tokenizer(tmp_path: Path, kind: str) -> None:
    config = {
        "tokenizer_class": kind,
        "bos_token": "<s>",
        "eos_token": {
            "__type": "AddedToken",
            "content": "</s>",
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "single_word": False,
        },
        "unk_token": "<unk>",
        "add_bos_token": True,
        "legacy": False,
        "additional_special_tokens": ["<new>"],
        "chat_template": [{"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}"}],
    }
    folder = folder_with(tmp_path, spaced(), config)
    text, reference = Text(folder), auto(folder)
    for prompt in ("ab a", " a", "b<new>a</s>", "\u00fc \U0001f600", ""):
        assert text.encode(prompt) == reference(prompt)["input_ids"], prompt
        ids = reference(prompt)["input_ids"]
        assert text.decode(ids) == reference.decode(ids, skip_special_tokens=True), prompt
    assert text.codec.start == codec_of(reference).start == (1,)
    assert text.ends == {2, 7}
    assert text.token_text(3 + 0xC3) == ("\ufffd", b"\xc3")
    assert text.token_text(262) == (" a", b" a")
    assert text.encode(Chat(messages=(TURNS[0],))) == reference.apply_chat_template(TURNS[:1])["input_ids"]


def test_folder_that_cannot_be_read_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": 7}')
    with pytest.raises(JobRefused, match="couldn't load the tokenizer") as caught:
        Text(tmp_path)
    assert caught.value.reason == "wrong-model"
    folder_with(tmp_path, spaced(), {"bos_token": "<s>"})
    with pytest.raises(JobRefused, match="end-of-sequence"):
        Text(tmp_path)


def test_unknown_ids_and_half_characters_are_refused() -> None:
    for prompt in (Tokens(ids=(10**9,)), Tokens(ids=(-1,)), "\ud800"):
        with pytest.raises(JobRefused) as caught:
            TINY.encode(prompt)
        assert caught.value.reason == "bad_tokens"


def test_chat_without_a_template_is_the_one_of_training(tmp_path: Path) -> None:
    from contrib.encoding import chat_prompt

    folder = folder_with(tmp_path, spaced(), {"bos_token": "<s>", "eos_token": "</s>"})
    turns = [Message(role=turn["role"], content=turn["content"]) for turn in TURNS]
    text = Text(folder)
    said = chat_prompt(turns, codec_of(auto(folder)))
    assert text.encode(Chat(messages=tuple(TURNS))) == list(text.codec.tokens(said))


def test_text_loads_neither_transformers_nor_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from contrib.models import tiny_folder; "
        "from node.serving.engine.text import Text; Text(tiny_folder()).encode('a'); "
        "sys.exit(len({'torch', 'transformers'} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=root)
    assert done.returncode == 0, done.stderr


def test_text_of_equal_files_is_shared_and_of_others_is_not(tmp_path: Path) -> None:
    import shutil

    shutil.copytree(tiny_folder(), tmp_path / "copy")
    shared = TINY.moved(tmp_path / "copy")
    assert shared is not None
    assert shared.folder == tmp_path / "copy"
    assert shared.encode("a") == TINY.encode("a")
    (tmp_path / "copy" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert TINY.moved(tmp_path / "copy") is None
    assert TINY.moved(tmp_path / "nowhere") is None
