"""The documents keep their word: commands run, names exist, and nothing of a particular machine is written anywhere.

A console block of README.md after `<!-- tested -->` is run here, one after `<!-- tested: slow -->` in the slow suite, in one
shell, with the test model, texts made here and free ports. All other mentions of a command are checked against the command line.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from contrib.demo_data import SOURCES
from node import config, sections
from node.cli import root

TOP = Path(__file__).resolve().parents[1]
README = (TOP / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [
    *(TOP / n for n in ("README.md", "CHANGELOG.md")),
    *(TOP / p / "README.md" for p in ("protocol", "ledger", "contrib", "node")),
]
_BLOCK = re.compile(r"(?:<!-- tested(?P<slow>: slow)? -->\n)?```console\n(?P<text>.*?)\n```", re.DOTALL)
_COMMAND = re.compile(r"(?:(?<=[\s(`])|(?<=/bin/)|^)fishernet(?= )(?P<rest>[^|;&)#`\n]*)", re.MULTILINE)
_MACHINE = re.compile(r"(?<![\w.$~}/-])/(?:work|tmp|root|home|mnt|opt|Users)/")
_REGISTRY = re.compile(
    r"https?://[^\s\"'`)]*(?:pypi|pythonhosted|npmjs|artifactory|nexus|registry|mirror|huggingface)|--(?:extra-)?index-url"
)


def blocks(*, tested: bool, slow: bool = False) -> list[str]:
    """The shell text of the console blocks that are marked so, in order."""
    found = []
    for match in _BLOCK.finditer(README):
        if (match[0].startswith("<!-- tested"), bool(match["slow"])) == (tested, slow):
            found.append("\n".join(line[2:] if line.startswith("$ ") else line for line in match["text"].split("\n")))
    return found


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, dict[str, str], dict[str, str]]:
    """A folder with configs and texts, the environment for the blocks, and the ports that stand for those of README."""
    held = [socket.socket() for _ in range(7)]
    for each in held:
        each.bind(("127.0.0.1", 0))
    old = ("4242", "4243", "4244", "8001", "8002", "8003", "8004")
    ports = {name: str(each.getsockname()[1]) for name, each in zip(old, held, strict=True)}
    for each in held:
        each.close()
    (tmp_path / "configs").mkdir()
    for file in (TOP / "configs").glob("*.toml"):
        text = with_ports(file.read_text(encoding="utf-8"), ports).replace("0.0.0.0", "127.0.0.1")  # noqa: S104
        (tmp_path / "configs" / file.name).write_text(text, encoding="utf-8")
    (tmp_path / "texts").mkdir()
    for name in ("clinic", "security", "cinema"):
        rows = (f'{{"text": "The {name} wrote line {i}, and {i * 7919 % 1000} words about it."}}\n' for i in range(700))
        (tmp_path / "texts" / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FISHERNET_")}
    environment = kept | {
        "HOME": str(tmp_path),
        "FISHERNET_CACHE": str(tmp_path / "cache"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MODEL": "tiny",
        "TEXTS": str(tmp_path / "texts"),
        "D": str(tmp_path / "homes"),
    }
    return tmp_path, environment, ports


def with_ports(text: str, ports: dict[str, str]) -> str:
    for old, new in ports.items():
        text = re.sub(rf"\b{old}\b", new, text)
    return text


def run(script: str, folder: Path, environment: dict[str, str], seconds: int) -> str:
    """Run the script in one shell and return what it said; the shell and what it started end in time, whatever happens."""
    command = ["timeout", "--kill-after=20", str(seconds), "bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"it ended with {done.returncode} (124: no end after {seconds} s)\n{done.stdout}"
    return done.stdout


@pytest.mark.timeout(300)
def test_commands_of_readme_make_three_nodes_with_rows_and_a_charter(
    place: tuple[Path, dict[str, str], dict[str, str]],
) -> None:
    folder, environment, _ = place
    said = run("\n".join(blocks(tested=True)), folder, environment, 280)
    assert "clean: 1 feeds" in said
    assert len(set(re.findall(r"^id +([0-9a-f]{64})", said, re.MULTILINE))) == 1
    assert {f.name for f in (folder / "homes").iterdir() if f.is_dir()} == {"clinic", "security", "cinema", "auditor"}


@pytest.mark.slow
@pytest.mark.timeout(640)
def test_commands_of_readme_lead_to_a_release_an_audit_and_an_answer(
    place: tuple[Path, dict[str, str], dict[str, str]],
) -> None:
    folder, environment, ports = place
    live = with_ports("\n".join(blocks(tested=True, slow=True)), ports)
    script = "\n".join(
        [*blocks(tested=True), "trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT", live, "wait || true"]
    )
    said = run(script, folder, environment, 600)
    assert "height 1: release 1" in said
    assert '"object":"chat.completion"' in said
    assert re.search(r"x-fishernet-release: [0-9a-f]{64}", said)
    assert not re.search(r"^error:", said, re.MULTILINE), said


def commands() -> Iterator[tuple[str, str]]:
    """Where a `fishernet ...` command is written, and its words."""
    for file in (*DOCUMENTS, *sorted((TOP / "configs").glob("*.toml"))):
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".md":
            fences = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
            spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        else:
            fences, spans = [re.sub(r"^#\s*", "", text, flags=re.MULTILINE)], []
        for piece in (*fences, *spans):
            for match in _COMMAND.finditer(piece.replace("\\\n", " ")):
                yield f"{file.relative_to(TOP)}", match["rest"].partition(" 2>")[0].strip()


@pytest.mark.parametrize(("where", "words"), sorted(set(commands())))
def test_every_command_in_the_documents_exists_with_its_options(where: str, words: str) -> None:
    command: click.Command = root
    ctx = click.Context(root, info_name="fishernet")
    rest = [word for word in shlex.split(words) if word != "..."]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        found = command.get_command(ctx, rest[0])
        assert found is not None, f"{where}: there is no command {rest[0]!r} in: fishernet {words}"
        command, rest = found, rest[1:]
        ctx = click.Context(command, info_name=command.name, parent=ctx)
    try:
        _, extra, _ = command.make_parser(ctx).parse_args(rest)
    except click.UsageError as e:
        pytest.fail(f"{where}: fishernet {words}: {e.format_message()}")
    assert isinstance(command, click.Group) or not extra, f"{where}: fishernet {words}: {extra} is too much"


def test_the_documents_name_commands_at_all() -> None:
    assert len(set(commands())) > 30
    assert len(blocks(tested=True)) >= 2
    assert len(blocks(tested=True, slow=True)) >= 3


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda f: str(f.relative_to(TOP)))
def test_links_and_make_targets_of_the_documents_exist(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (file.parent / target).exists(), f"{file.name} points to {target}"
    known = set(re.findall(r"^([a-z-]+):", (TOP / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:`|^    )make ([a-z-]+)", text, re.MULTILINE)) <= known


@pytest.mark.parametrize("file", [f for f in DOCUMENTS if f.name == "README.md"], ids=lambda f: str(f.relative_to(TOP)))
def test_modules_that_the_documents_name_exist(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    for name in set(re.findall(r"`((?:protocol|ledger|contrib|node|benchmarks|tests|configs)/[\w/.-]*)`", text)):
        assert (TOP / name).exists(), f"there is no {name}"


def test_the_file_tree_of_readme_names_what_exists() -> None:
    tree = README.partition("## File tree")[2].partition("\nLayers")[0]
    package, named = "", 0
    for line in tree.splitlines():
        if head := re.match(r" {4}(\w+)/ ", line):
            package = head[1]
        elif names := re.match(r" {6}(\S+(?: \S+)*?)(?: {2,}|$)", line):
            for name in names[1].split():
                paths = (TOP / package / name, TOP / package / f"{name}.py")
                assert any(path.exists() for path in paths), f"{package} has no {name}"
                named += 1
    assert named > 70


def test_the_configuration_in_readme_is_accepted() -> None:
    shown = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    assert len(shown) == 1
    config.parse(shown[0], source=TOP / "README.md")
    assert set(tomllib.loads(shown[0])) == set(sections.NodeConfig.model_fields)


def test_readme_thanks_the_owners_of_the_demo_texts() -> None:
    flat = re.sub(r"\s+", " ", README)
    for source in SOURCES.values():
        assert source.attribution in flat
        assert f"`{source.package}` {source.version}" in flat


def repository() -> list[Path]:
    """The files of the repository, outside tests."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=TOP,
        capture_output=True,
        check=False,
    )
    if listed.returncode == 0:
        names = [name for name in listed.stdout.decode().split("\0") if name]
    else:  # a copy without its history
        tops = ("protocol", "ledger", "contrib", "node", "configs", "benchmarks")
        names = [str(f.relative_to(TOP)) for top in tops for f in (TOP / top).rglob("*")]
        names += [f.name for f in TOP.iterdir()]
    files = [TOP / name for name in names if not name.startswith("tests/")]
    return [f for f in files if f.is_file() and f.suffix not in {".safetensors", ".pyc"}]


def test_no_file_names_a_place_of_one_machine_or_a_package_registry() -> None:
    faults = []
    for file in repository():
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if found := (_MACHINE.search(line) or _REGISTRY.search(line)):
                faults.append(f"{file.relative_to(TOP)}:{number}: {found[0]}")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("text", ["see /opt/x", "in '/tmp/y'", "--index-url x", "https://registry.example/a"])
def test_a_place_of_one_machine_would_be_seen(text: str) -> None:
    assert _MACHINE.search(text) or _REGISTRY.search(text)


@pytest.mark.parametrize("text", ["~/.cache/fishernet/demo", "node/home/x", "$D/tmp/x", "ip4/127.0.0.1/tcp/1"])
def test_ordinary_text_is_not_mistaken_for_a_place(text: str) -> None:
    assert not _MACHINE.search(text)
    assert not _REGISTRY.search(text)
