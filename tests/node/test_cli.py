from __future__ import annotations

import contextlib
import json
import os
import pty
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from contrib import readers
from node.cli import main, root, run
from node.home import Home
from node.keys import identity

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(c for c in (ROOT / "configs").glob("*.toml") if not c.name.startswith("simulation-"))


@pytest.fixture(autouse=True)
def _own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FISHERNET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FISHERNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FISHERNET_PASSPHRASE", raising=False)


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "node", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert run([*arguments, "--json"]) == 0, capsys.readouterr().err
    printed = capsys.readouterr()
    assert printed.err == ""
    return json.loads(printed.out)  # type: ignore[no-any-return]


def failure(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> dict[str, str]:
    assert run([*arguments, "--json"]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    return json.loads(printed.err)["error"]  # type: ignore[no-any-return]


def commands_of(group: click.Command, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    found = [(path, group)]
    if isinstance(group, click.Group):
        ctx = click.Context(group)
        for name in group.list_commands(ctx):
            child = group.get_command(ctx, name)
            assert child is not None
            found += commands_of(child, (*path, name))
    return found


EVERY = commands_of(root)


# -- speed and help --------------------------------------------------------------------------------------------------
def test_help_answers_in_under_three_tenths_of_a_second() -> None:
    script = shutil.which("fishernet", path=str(Path(sys.executable).parent))
    start = [script] if script else [sys.executable, "-m", "node"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    took = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([*start, "--help"], env=environment, capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert "Commands:" in done.stdout
    assert min(took) < 0.3  # CPU time, which is the wall time of an idle machine: other tests keep this one busy


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from node.cli import run; run(['--help']); print(sorted(sys.modules), file=sys.stderr)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    for heavy in (
        "torch",
        "hivemind",
        "transformers",
        "numpy",
        "pydantic",
        "sqlite_utils",
        "rich",
        "fastapi",
        "asyncio",
    ):
        assert f"'{heavy}'" not in done.stderr


@pytest.mark.parametrize("path", [path for path, _ in EVERY], ids=" ".join)
def test_every_command_has_help_and_the_common_options(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*path, "--help"]) == 0
    shown = capsys.readouterr().out
    for option in ("--home", "--json", "--passphrase-file", "--verbose"):
        assert option in shown
    assert "(No help" not in shown


def test_the_summary_in_the_table_names_every_command_of_the_issue() -> None:
    names = {" ".join(path) for path, _ in EVERY}
    assert names >= {
        "init", "up", "status", "log", "measure", "audit", "observe", "demo", "train", "completion", "version",
        "collective approve",
        "collective create", "collective show", "collective invite", "collective join", "collective amend",
        "collective requests", "data add", "data list", "data show", "model add", "model list", "config show",
        "config check", "prove", "verify-proof", "ledger export",
    }  # fmt: skip


# -- init ------------------------------------------------------------------------------------------------------------
def test_init_makes_a_node_with_a_private_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = answer(capsys, "init", "--name", "Clinic", "--model", "tiny")
    home = Home.open(tmp_path / "home")
    assert home.ledger_key.stat().st_mode & 0o777 == 0o600
    assert result == {
        "home": str(home.path),
        "name": "Clinic",
        "member": home.unlock(None).member,
        "peer": home.unlock(None).peer,
        "locked": False,
        "recovery_file": str(home.path / "recovery.pem"),
    }
    assert home.read_config().node.model == "tiny"


def test_a_second_init_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, "init")
    error = failure(capsys, 1, "init")
    assert error["code"] == "home-not-empty"
    assert error["kind"] == "refused"
    assert "--home" in error["hint"]


def test_the_home_may_stand_before_and_after_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, "--home", str(tmp_path / "a"), "init")["home"] == str(tmp_path / "a")
    assert answer(capsys, "--home", str(tmp_path / "a"), "init", "--home", str(tmp_path / "b"))["home"] == str(
        tmp_path / "b"
    )
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_init_takes_each_shipped_example(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, "init", "--config", str(path))["name"] == path.stem
    assert (tmp_path / "home" / "node.toml").read_text() == path.read_text()
    assert answer(capsys, "config", "check")["ok"] is True


def test_init_with_a_bad_example_makes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (bad := tmp_path / "bad.toml").write_text("[train]\nstep = 3\n")
    assert "did you mean steps?" in failure(capsys, 1, "init", "--config", str(bad))["message"]
    assert not (tmp_path / "home").exists()


# -- passphrases -----------------------------------------------------------------------------------------------------
def test_a_passphrase_locks_the_key_and_the_wrong_one_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (right := tmp_path / "right").write_text("open sesame\n")
    (wrong := tmp_path / "wrong").write_text("open, sesame\n")
    assert answer(capsys, "init", "--passphrase-file", str(right))["locked"] is True
    assert identity.load(Home.open(tmp_path / "home"), "open sesame")
    error = failure(capsys, 1, "up", "--passphrase-file", str(wrong))
    assert error["code"] == "wrong-passphrase"


def test_a_passphrase_comes_from_the_environment_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FISHERNET_PASSPHRASE", "open sesame")
    assert answer(capsys, "init")["locked"] is True
    monkeypatch.setenv("FISHERNET_PASSPHRASE", "close sesame")
    assert failure(capsys, 1, "up")["code"] == "wrong-passphrase"
    monkeypatch.delenv("FISHERNET_PASSPHRASE")
    error = failure(capsys, 1, "up")
    assert error["code"] == "passphrase-needed"
    assert "FISHERNET_PASSPHRASE" in error["hint"]


def typed(lines: list[str], *arguments: str) -> tuple[int, str]:
    """Run a command on a terminal of its own, answer each question with the next line; its code and what was shown."""
    controller, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "node", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb"},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    ) as process:
        os.close(terminal)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while piece := os.read(controller, 4096):
                shown += piece
                if piece.rstrip().endswith(b":") and lines:
                    os.write(controller, lines.pop(0).encode() + b"\n")
        code = process.wait(20)
    os.close(controller)
    return code, shown.decode()


def test_a_passphrase_is_asked_for_on_a_terminal_and_not_shown(tmp_path: Path) -> None:
    code, shown = typed(["open sesame", "open sesame"], "init", "--passphrase")
    assert (code, "sesame" in shown) == (0, False)
    assert identity.load(Home.open(tmp_path / "home"), "open sesame")
    code, shown = typed(["close sesame"], "up")
    assert code == 1
    assert "wrong passphrase" in shown


@pytest.mark.parametrize("content", [b"", b"\n", b"two\nlines\n", b"\xff"])
def test_a_useless_passphrase_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    (file := tmp_path / "file").write_bytes(content)
    assert "passphrase file" in failure(capsys, 1, "init", "--passphrase-file", str(file))["message"]
    assert not (tmp_path / "home").exists()


def test_open_permissions_are_told_with_the_cure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, "init")
    (key := tmp_path / "home" / "keys" / "ledger.pem").chmod(0o644)
    error = failure(capsys, 1, "up")
    assert error["code"] == "open-permissions"
    assert error["hint"] == f"run: chmod 600 {key}"


# -- errors ----------------------------------------------------------------------------------------------------------
def test_an_error_for_people_has_a_hint_and_no_traceback(tmp_path: Path) -> None:
    done = command("status", FISHERNET_HOME=str(tmp_path / "none"))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.split("\n") == [
        f"error: couldn't open home {tmp_path / 'none'}: no node lives there",
        f"hint:  fishernet init --home {tmp_path / 'none'}",
        "",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ("nosuch",),
        ("status", "--nosuch"),
        ("data",),
        ("data", "add"),
        ("completion", "tcsh"),
        ("train", "--steps", "x"),
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_two_and_json_when_asked(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    error = failure(capsys, 2, *arguments)
    assert error["code"] == "usage"
    assert "\n" not in error["message"].rstrip()


def test_verbose_shows_where_an_error_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "-v"]) == 1
    assert "Traceback" in capsys.readouterr().err
    failure(capsys, 1, "status", "-v")


def test_a_mistyped_command_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    assert failure(capsys, 2, "stauts")["message"] == "no command 'stauts', did you mean status?"


def test_a_full_or_broken_disk_is_an_error_not_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    error = failure(capsys, 2, "init", "--home", str(tmp_path / "file" / "home"))
    assert error["code"] == "system"
    assert "Not a directory" in error["message"]


def test_init_on_a_full_disk_leaves_nothing_and_says_so(tmp_path: Path) -> None:
    limited = f"ulimit -f 2; exec {sys.executable} -m node init --json"  # no file may grow over 1 or 2 KiB
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(["sh", "-c", limited], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert json.loads(done.stderr)["error"]["message"].startswith("couldn't ")
    assert list((tmp_path / "home").iterdir()) == []


def test_main_ends_the_process_with_the_code() -> None:
    with pytest.raises(SystemExit) as caught:
        main(["nosuch"])
    assert caught.value.code == 2


def test_a_closed_pipe_is_no_traceback() -> None:
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m node --help | true"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr


# -- config, completion, version, model ------------------------------------------------------------------------------
def test_config_show_hides_api_keys(capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, "init")
    answer(capsys, "config", "set", "serve.api_keys", '["secret-key"]')
    shown = answer(capsys, "config", "show")
    assert "secret-key" not in json.dumps(shown)
    assert shown["serve"]["api_keys"] == ["***"]
    assert shown["serve"]["port"] == 8000
    assert run(["config", "show"]) == 0
    assert 'api_keys = ["***"]' in capsys.readouterr().out


def test_config_set_changes_one_value_or_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, "init")
    assert answer(capsys, "config", "set", "train.steps", "20") == {"key": "train.steps", "value": 20}
    assert answer(capsys, "config", "set", "node.name", "North") == {"key": "node.name", "value": "North"}
    before = (tmp_path / "home" / "node.toml").read_text()
    assert "did you mean steps?" in failure(capsys, 1, "config", "set", "train.stepz", "20")["message"]
    assert "valid integer" in failure(capsys, 1, "config", "set", "train.steps", "many")["message"]
    assert failure(capsys, 2, "config", "set", "steps", "20")["code"] == "usage"
    assert (tmp_path / "home" / "node.toml").read_text() == before


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_each_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"_FISHERNET_COMPLETE={shell}_complete" in script
    assert answer(capsys, "completion", shell)["script"] == script.removesuffix("\n")


def test_completion_completes_commands_and_their_parts() -> None:
    words = {"_FISHERNET_COMPLETE": "bash_complete", "COMP_CWORD": "2"}
    done = command(COMP_WORDS="fishernet collective in", **words)
    assert done.stdout.split() == ["plain,invite"]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("recipes trimmed-m", ["plain,trimmed-mean/1"]),
        ("collective create --recipe guarded", ["plain,guarded-mean/1"]),
        ("model add ti", ["plain,tiny"]),
        ("init --model smol", ["plain,smollm2-135m"]),
        ("config set train.st", ["plain,train.steps"]),
        ("config set nothing.", []),
    ],
)
def test_completion_offers_the_names_that_are_known(line: str, offered: list[str]) -> None:
    words = {"_FISHERNET_COMPLETE": "bash_complete", "COMP_CWORD": str(len(line.split()))}
    done = command(COMP_WORDS=f"fishernet {line}", **words)
    assert (done.stdout.split(), done.stderr) == (offered, "")


def test_version_names_what_changes_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    versions = answer(capsys, "version")
    assert versions["numpy"]
    assert set(versions) >= {"fishernet", "python", "torch", "hivemind"}


def test_model_list_of_an_empty_cache_says_how_to_begin(capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, "model", "list") == {"models": []}
    assert run(["model", "list"]) == 0
    assert "fishernet model add smollm2-135m" in capsys.readouterr().out


def test_an_unknown_model_source_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    error = failure(capsys, 1, "model", "add", "nosuch")
    assert error["kind"] == "refused"
    assert "nosuch" in error["message"]


def test_the_formats_on_offer_are_those_that_are_read() -> None:
    command_ = next(found for path, found in EVERY if path == ("data", "add"))
    kinds = [param.type for param in command_.params if param.name == "format_"]
    assert isinstance(kinds[0], click.Choice)
    assert tuple(kinds[0].choices) == readers.FORMATS


# -- a session without a daemon --------------------------------------------------------------------------------------
def test_a_first_session_before_the_daemon_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (rows := tmp_path / "notes.jsonl").write_text("".join(json.dumps({"text": f"note {n}"}) + "\n" for n in range(60)))
    member = answer(capsys, "init", "--name", "clinic", "--model", "tiny")["member"]
    digest = answer(capsys, "model", "add", "tiny")["digest"]
    added = answer(capsys, "data", "add", str(rows), "--dataset", "notes")
    assert added["train_rows"] + added["held_out_rows"] == 60  # type: ignore[operator]
    assert answer(capsys, "data", "list")["datasets"] == [answer(capsys, "data", "show", "notes")]
    assert failure(capsys, 1, "data", "add", str(rows), "--dataset", "notes")["code"] == "dataset-exists"
    assert "did you mean notes?" in failure(capsys, 1, "data", "show", "note")["message"]

    charter = answer(capsys, "collective", "create", "--name", "ours", "--density", "0.1", "--patience", "1.5")
    assert charter["base"] == {"name": "tiny", "digest": digest}
    assert charter["update"]["density_ppm"] == 100_000  # type: ignore[index]
    assert charter["release"]["patience_ms"] == 1500  # type: ignore[index]
    assert answer(capsys, "collective", "show") == charter
    assert answer(capsys, "config", "show")["node"]["collective"] == charter["id"]  # type: ignore[index]
    proposed = answer(capsys, "collective", "amend", "gate.tolerance_centinats=5")
    assert "tolerance_centinats" in str(proposed["text"])
    assert failure(capsys, 2, "collective", "amend")["code"] == "usage"
    assert failure(capsys, 2, "collective", "amend", "gate")["code"] == "usage"

    status = answer(capsys, "status")
    assert (status["member"], status["running"], status["name"]) == (member, False, "ours")
    assert answer(capsys, "log")["decisions"] == []
    assert answer(capsys, "audit")["verdict"] == "clean"
    error = failure(capsys, 2, "train")
    assert error["code"] == "daemon-down"
    assert "fishernet up" in error["hint"]
    for command_ in ("status", "log", "audit", "collective show", "collective requests", "data list", "model list"):
        assert run(command_.split()) == 0  # the form for people
    assert "ours" in capsys.readouterr().out
