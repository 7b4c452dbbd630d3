"""The tokenizer of a model folder, from its files: `tokenizer.json`, its config, its chat template.

Reads what transformers' AutoTokenizer reads and gives what it gives, without importing transformers (that costs seconds of
every start of a worker); only a folder without `tokenizer.json` is read through it. Knows no weights and no rows.

Invariant: ids and rendered chats equal those of AutoTokenizer on the same folder. Templates come with the model, from outside:
they run in a sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from tokenizers import AddedToken, Tokenizer

from contrib.encoding import Codec, Turns
from contrib.errors import CorruptModel, TokenizerUnfit

SPECIALS: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_OLDER: Final = ("tokenizer.model", "vocab.json", "vocab.txt")  # of tokenizers that transformers converts


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """What a folder says of its tokenizer; `specials` are the named special tokens as text."""

    tokenizer: Tokenizer
    specials: Mapping[str, str]
    template: str | None

    def id_of(self, name: str) -> int | None:
        """The id of a named special token, or None."""
        token = self.specials.get(name)
        found: int | None = None if token is None else self.tokenizer.token_to_id(token)
        return found

    def codec(self) -> Codec:
        """What encoding needs of it.

        Raises:
            TokenizerUnfit: it has no end token, so an answer could not end; or its chat template cannot be read.
        """
        tokenizer, bos, eos, pad = self.tokenizer, *map(self.id_of, ("bos_token", "eos_token", "pad_token"))
        if eos is None:
            raise TokenizerUnfit("couldn't use tokenizer: it names no end-of-sequence token")
        begins = bos is not None and tokenizer.encode("").ids[:1] == [bos]
        return Codec(
            tokens=lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids),
            start=(bos,) if begins and bos is not None else (),
            eos=eos,
            eos_text=self.specials["eos_token"],
            pad=eos if pad is None else pad,
            render=Template(self.template, self.specials).render if self.template else None,
        )


def read(folder: Path) -> Files:
    """The tokenizer in `folder`, without truncation and padding.

    Raises:
        CorruptModel: a file is missing or damaged.
    """
    try:
        found = _read(folder)
    except Exception as e:
        # `tokenizers` raises bare Exception on a damaged file
        cause = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise CorruptModel(f"couldn't load the tokenizer in {folder}: {cause}") from e
    found.tokenizer.no_truncation()
    found.tokenizer.no_padding()
    return found


def _read(folder: Path) -> Files:
    if not (folder / "tokenizer.json").is_file():
        if not any((folder / name).is_file() for name in _OLDER):
            raise ValueError("it has no tokenizer.json")
        return _through_transformers(folder)
    config = _json(folder / "tokenizer_config.json")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    known = config if "added_tokens_decoder" in config else {**config, **_json(folder / "special_tokens_map.json")}
    named = {name: known[name] for name in SPECIALS if known.get(name) is not None}
    specials = {name: str(value["content"] if isinstance(value, dict) else value) for name, value in named.items()}
    _add_missing(tokenizer, config, specials)
    tokenizer.encode_special_tokens = bool(config.get("split_special_tokens", False))
    return Files(tokenizer=tokenizer, specials=specials, template=_template(folder, config))


def _through_transformers(folder: Path) -> Files:
    """A folder that has the files of an older tokenizer only: transformers converts them."""
    from transformers import AutoTokenizer

    whole: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    template = whole.get_chat_template() if whole.chat_template else None
    return Files(tokenizer=whole.backend_tokenizer, specials=dict(whole.special_tokens_map), template=template)


def _json(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} is no JSON object")
    return value


def _add_missing(tokenizer: Tokenizer, config: Mapping[str, Any], specials: Mapping[str, str]) -> None:
    """Make the tokenizer recognise what its config names and `tokenizer.json` does not hold as an added token."""
    present = {repr(token) for token in tokenizer.get_added_tokens_decoder().values()}
    stated = {int(number): value for number, value in config.get("added_tokens_decoder", {}).items()}
    tokens = [AddedToken(**stated[number]) for number in sorted(stated)]
    tokenizer.add_tokens([token for token in tokens if repr(token) not in present])
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or ()
    listed = extra.values() if isinstance(extra, dict) else extra
    contents = [value["content"] if isinstance(value, dict) else str(value) for value in listed]
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    missing = [text for text in dict.fromkeys([*specials.values(), *contents]) if text not in known]
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in missing])


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The chat template: of its own file, else of the config, where several have the one called default."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    found = config.get("chat_template")
    if isinstance(found, list):
        found = {each["name"]: each["template"] for each in found}
    return found.get("default") if isinstance(found, dict) else found


# -- chat template ---------------------------------------------------------------------------------------------------
class Template:
    """A chat template, rendered exactly as transformers renders it."""

    def __init__(self, source: str, specials: Mapping[str, str]) -> None:
        """Compile `source`; `specials` are the names of special tokens that it may use. Raises TokenizerUnfit."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": lambda form: datetime.now().strftime(form),  # the template's local date
            "dict": _Dict(),
            "namespace": _Namespace,
        }
        try:
            self._template, self._specials = environment.from_string(source), dict(specials)
        except TemplateError as e:
            raise TokenizerUnfit(f"couldn't read the model's chat template: {e}") from None

    def render(self, turns: Turns, opens: bool) -> str:
        """The conversation as text, with the opening of an answer at its end. Raises TokenizerUnfit."""
        messages = [dict(turn) for turn in turns]
        try:
            return self._template.render(
                messages=messages, tools=None, documents=None, add_generation_prompt=opens, **self._specials
            )
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as e:
            cause = str(e).splitlines()[0] if str(e) else type(e).__name__  # many refuse two turns of one side
            raise TokenizerUnfit(f"couldn't write chat: the model's chat template refuses it ({cause})") from None


class _Generation(Extension):
    """The tag {% generation %}, with which templates mark answers for training: its body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012  (jinja's own declaration)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Any) -> str:
        return str(caller())


class _Dict:
    """`dict` for templates: what makes one, nothing to break out with."""

    def __call__(self, *args: Any, **named: Any) -> dict[Any, Any]:
        return dict(*args, **named)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """jinja's `namespace` without names that begin with an underscore."""

    def __init__(*args: Any, **named: Any) -> None:  # no `self`, so that `namespace(self=...)` works, as jinja's
        self, values = args[0], dict(*args[1:], **named)
        for name in values:
            _Namespace._check(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _Namespace._check(name)
        Namespace.__setitem__(self, name, value)

    @staticmethod
    def _check(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"chat templates cannot store {name!r} in a namespace")


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """As JSON, without the escapes for HTML that jinja's own filter makes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)
