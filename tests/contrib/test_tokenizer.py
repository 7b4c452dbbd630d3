"""The tokenizer of a folder is the one that transformers reads from it; its chat template is a stranger's program."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from contrib import models, tokenizer
from contrib.encoding import codec_of
from contrib.errors import CorruptModel, TokenizerUnfit
from contrib.tokenizer import Template

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Gr\u00fc\u00dfe? {{ 1 + 1 }} {% if %}"},
    {"role": "assistant", "content": "  \n"},
    {"role": "user", "content": ""},
]


def test_codec_is_that_of_auto_tokenizer() -> None:
    from transformers import AutoTokenizer

    ours = tokenizer.read(models.tiny_folder()).codec()
    theirs = codec_of(AutoTokenizer.from_pretrained(models.tiny_folder()))
    assert (ours.start, ours.eos, ours.eos_text, ours.pad) == (theirs.start, theirs.eos, theirs.eos_text, theirs.pad)
    for text in ("The people", " Gr\u00fc\u00dfe \U0001f600 ", "a\r\n\tb\x00", theirs.eos_text + "x", ""):
        assert list(ours.tokens(text)) == list(theirs.tokens(text))
    assert ours.render is not None
    assert theirs.render is not None
    for length in range(1, len(TURNS) + 1):
        assert ours.render(TURNS[:length], True) == theirs.render(TURNS[:length], True)


@pytest.mark.parametrize("content", ['{"version": "1.0", "model": 7}', "[]", "", "{"])
def test_damaged_tokenizer_is_refused_in_words(tmp_path: Path, content: str) -> None:
    shutil.copytree(models.tiny_folder(), tmp_path, dirs_exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        whole = (tmp_path / name).read_text()
        (tmp_path / name).write_text(content)
        with pytest.raises((CorruptModel, TokenizerUnfit), match="tokenizer"):
            tokenizer.read(tmp_path).codec()
        (tmp_path / name).write_text(whole)


TEMPLATES = {
    "json": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}<&>",
    "control": "{% for m in messages %}\n  {% if m.role == 'system' %}{% continue %}{% endif %}\n{{ m.content }}\n"
    "{% if loop.index > 1 %}{% break %}{% endif %}{% endfor %}|{{ bos_token }}{{ eos_token }}",
    "namespace": "{% set ns = namespace(found=0) %}{% for m in messages %}{% set ns.found = ns.found + 1 %}{% endfor %}"
    "{{ ns.found }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "tools": "{% if tools is none %}no tools{% endif %}{% if tools %}x{% endif %}{{ dict(a=1) }}",
    "blocks": "  {%- if true %}\n   kept\n  {% endif %}\n   {# comment #}\nend {{ add_generation_prompt }}\n",
    "unknown": "{{ nothing }}{{ messages[-1]['content'] | trim | upper }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_template_renders_as_transformers_renders_it(name: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    specials = {"bos_token": "<s>", "eos_token": "</s>"}
    theirs, _ = render_jinja_template(
        conversations=[TURNS], chat_template=TEMPLATES[name], add_generation_prompt=True, **specials
    )
    assert Template(TEMPLATES[name], specials).render(TURNS, True) == theirs[0]


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{% set ns = namespace(_x=1) %}",
        "{{ 1 // 0 }}",
        "{{ messages[9].content + 1 }}",
    ],
)
def test_template_that_refuses_or_breaks_out_is_an_answer_not_a_crash(source: str) -> None:
    with pytest.raises(TokenizerUnfit, match="couldn't write chat"):
        Template(source, {}).render(TURNS, True)
