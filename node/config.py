"""`node.toml` as a file: reading it, saying what is wrong in it, writing a new one, changing one key in place.

The keys themselves and their manual stand in `node.sections`. A key that does not exist is an error that names the nearest
one. Knows no home and no daemon. Law: `parse(template(...))` is the same as the defaults with the given values.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from pathlib import Path
from typing import get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from node.errors import ConfigError
from node.files import write_new
from node.sections import FORMS, NodeConfig, Section

_MAX_BYTES = 256 * 1024


def load(path: Path) -> NodeConfig:
    """Read and check the file.

    Raises:
        ConfigError: not readable, not TOML, or a key or value is not acceptable; file, line and key are named.
    """
    return parse(read_text(path, "config"), source=path)


def read_text(path: Path, what: str) -> str:
    """The text of a TOML file of ours; `what` names it in errors (raises ConfigError: not readable, too large, not UTF-8)."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as e:
        raise ConfigError(f"couldn't read {what} {path}: {e.strerror}") from None
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"couldn't read {what} {path}: over {_MAX_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as e:
        raise ConfigError(f"couldn't read {what} {path}: not UTF-8 at byte {e.start}") from None


def parse(text: str, *, source: Path) -> NodeConfig:
    """Check `text`; `source` is only named in errors (raises ConfigError)."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"couldn't read config {source}: {e}") from None
    try:
        return NodeConfig.model_validate(values)
    except ValidationError as e:
        faults = [_fault(error, text) for error in e.errors(include_url=False)]
        raise ConfigError(f"couldn't use config {source}: " + "; ".join(faults)) from None


def template(**node: str) -> str:
    """The commented TOML of a new node, all defaults, with the given keys of [node] filled in."""
    lines = ["# Configuration of one Fishernet node. Check it with: fishernet config check", ""]
    for section, field in NodeConfig.model_fields.items():
        model = _model(field.annotation)
        lines += [f"# {model.__doc__}", f"[{section}]"]
        for key, item in model.model_fields.items():
            default = item.get_default(call_default_factory=True)
            value = node.get(key, default) if section == "node" else default
            lines += [f"# {item.description}", f"{key} = {literal(value)}"]
        lines.append("")
    return "\n".join(lines)


def update(path: Path, section: str, key: str, value: object) -> NodeConfig:
    """Set one key of the file in place, every comment kept, and return the new configuration.

    Raises:
        ConfigError: the result would not be acceptable; the file is then as before.
    """
    load(path)
    lines = path.read_text(encoding="utf-8").split("\n")
    start, end = _span(lines, section)
    entry = f"{key} = {literal(value)}"
    held = [i for i in range(start, end) if re.match(rf"\s*{re.escape(key)}\s*=", lines[i])]
    if held:
        stop = held[0] + 1
        while stop < end and not _complete("\n".join(lines[held[0] : stop])):  # an array over several lines
            stop += 1
        lines[held[0] : stop] = [entry]
    elif start:
        lines.insert(start, entry)
    else:
        lines += [f"[{section}]", entry, ""]
    text = "\n".join(lines)
    new = parse(text, source=path)
    write_new(path, text.encode(), mode=0o600)
    return new


def nearest(word: str, known: list[str]) -> str:
    """The known word most like `word`, or "" when none is."""
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return found[0] if found else ""


def literal(value: object) -> str:
    """The TOML literal of a value; JSON's strings, numbers and booleans are TOML's too. Law: `value_of(literal(v)) == v`."""
    if isinstance(value, dict):
        pairs = (f"{literal(str(key))} = {literal(item)}" for key, item in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(literal(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace(
        "\x7f", r"\u007f"
    )  # the one character that TOML escapes and JSON not


def value_of(text: str) -> object:
    """The value of a TOML literal; text that is none stands for itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def as_name(text: str) -> str:
    """`text` with everything left out that a node's name may not hold."""
    kept = re.sub(r"[^0-9A-Za-z ._-]+", "-", text).strip(" ._-")[:63]
    return kept or "node"


def _model(annotation: object) -> type[Section]:
    if not (isinstance(annotation, type) and issubclass(annotation, Section)):
        raise TypeError(f"{annotation} is not a section: {get_args(annotation)}")
    return annotation


def _fault(error: ErrorDetails, text: str) -> str:
    """One line for a person: where, which key, what is wrong."""
    path = [str(part) for part in error["loc"]]
    section, key = path[0], path[1] if len(path) > 1 else ""
    where = f"[{section}] {key}".rstrip()
    start, end = _span(text.split("\n"), section)
    for number, line in enumerate(text.split("\n")[start:end], start + 1):
        if key and re.match(rf"\s*{re.escape(key)}\s*=", line):
            where = f"line {number}: {where}"
            break
    if error["type"] == "extra_forbidden":
        return f"{where} is unknown{_suggestion(section, key)}"
    if error["type"] == "string_pattern_mismatch":
        return f"{where} should look like {FORMS[key]}"
    value: object = error["input"]
    shown = f" (it is {literal(value)})" if isinstance(value, str | int | float) and key != "api_keys" else ""
    return f"{where}: {error['msg'][0].lower()}{error['msg'][1:]}{shown}"


def _suggestion(section: str, key: str) -> str:
    sections = {name: list(_model(field.annotation).model_fields) for name, field in NodeConfig.model_fields.items()}
    if not key:
        owner = next((name for name, keys in sections.items() if section in keys), "")
        near = nearest(section, list(sections))
        return f", it belongs into [{owner}]" if owner else f", did you mean [{near}]?" if near else ""
    if near := nearest(key, sections.get(section, [])):
        return f", did you mean {near}?"
    owner = next((name for name, keys in sections.items() if key in keys), "")
    return f", it belongs into [{owner}]" if owner else f"; [{section}] knows {', '.join(sections.get(section, []))}"


def _span(lines: list[str], section: str) -> tuple[int, int]:
    """Indices of the lines that follow the header of `section`, up to the next header; (0, 0) without one."""
    heads = [i for i, line in enumerate(lines) if re.match(r"\s*\[[^\[\]\"',]+\]\s*(#.*)?$", line)]
    for i in heads:
        if re.match(rf"\s*\[\s*{re.escape(section)}\s*\]", lines[i]):
            return i + 1, next((j for j in heads if j > i), len(lines))
    return 0, 0


def _complete(fragment: str) -> bool:
    try:
        tomllib.loads(fragment)
    except tomllib.TOMLDecodeError:
        return False
    return True
