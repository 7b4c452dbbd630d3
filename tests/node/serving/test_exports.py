"""What `fishernet export` writes was recomputed here and is what the quorum decided; else it says why not."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from paper import key
from released import SPEC, tiny
from seats import Sitter, Table

from contrib import exported, models
from contrib.adapters import layout
from contrib.exporting import Wanted
from contrib.models import tiny_folder
from node import cli, config
from node import session as sessions
from node.errors_serving import CannotSign, NotRecomputable, UnknownRelease
from node.home import model_cache
from node.serving import exports
from protocol import binding
from protocol.ids import Digest

COUNT = layout(tiny_folder(), SPEC).coordinates


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Table]:
    """Three members who decided two releases of the test model."""
    cache = tmp_path_factory.mktemp("cache")
    before = os.environ.get("FISHERNET_CACHE")
    os.environ["FISHERNET_CACHE"] = str(cache)
    models.add("tiny", model_cache())
    rules = {
        "base": {"name": "tiny", "digest": tiny().digest},
        "adapter": {**SPEC.to_json(), "coordinates": COUNT},
    }
    found = Table(tmp_path_factory.mktemp("table"), rules=rules)
    found.release()
    found.release("bob")
    for sitter in found:
        sitter.home.config_file.write_text(config.template(name=sitter.name, collective=found.collective))
        sitter.home.keys.mkdir(exist_ok=True)
    yield found
    found.close()
    os.environ.pop("FISHERNET_CACHE")
    if before is not None:
        os.environ["FISHERNET_CACHE"] = before


def session_of(sitter: Sitter) -> sessions.Session:
    session = sessions.Session(home=sitter.home, config=sitter.home.read_config(), store=sitter.store, member=sitter.id)
    session.open_seat()
    return session


def write(sitter: Sitter, release: str, out: Path, *, sign: Path | None = None, **wanted: object) -> dict[str, object]:
    told = exports.export(
        session_of(sitter),
        release,
        Wanted(**{"format": "peft", "out": out, **wanted}),  # type: ignore[arg-type]
        sign=sign,
        on_progress=lambda _stage, _part: None,
    )
    assert isinstance(told, dict)
    return told  # type: ignore[return-value]


def test_exported_release_is_the_one_that_was_decided(table: Table, tmp_path: Path) -> None:
    ada = table["ada"]
    for number, decision in enumerate(ada.fold.releases, 1):
        told = write(ada, f"release-{number}", tmp_path / str(number))
        found = exported.read(tmp_path / str(number))
        assert found.release == told["release"] == decision.digest
        assert found.model == decision.value.model
        np.testing.assert_array_equal(found.vector, ada.replay.of_cut(decision.charter, decision.value).vector)
        card = json.loads((tmp_path / str(number) / "fishernet.json").read_text())
        assert card["cut"] == decision.value.to_json()
        assert [c["event"] for c in card["certificate"]["commits"]] == [c.event for c in decision.commits]
        assert {m["name"]: m["contributions"] for m in card["members"]} == {"ada": 1, "bob": number, "cyd": 1}
        (head,) = ada.store.heads(ada.collective, ada.id)
        assert card["ledger"]["head"] == head.root
    assert found.model != exported.read(tmp_path / "1").model


def test_every_member_exports_the_same_adapter(table: Table, tmp_path: Path) -> None:
    for sitter in table:
        write(sitter, "latest", tmp_path / sitter.name)
    files = [(tmp_path / s.name / "adapter_model.safetensors").read_bytes() for s in table]
    assert len(set(files)) == 1


def test_release_is_found_by_name_number_and_digest(table: Table) -> None:
    fold = table["ada"].fold
    first, second = fold.releases
    for name in ("latest", "release-2", "2", second.digest, second.digest[:8]):
        assert exports.find(fold, name)[0] == second
    assert exports.find(fold, "1")[0] == first
    for name in ("release-3", "3", second.digest[:7], "", "latset", "ff" * 32, "release-"):
        with pytest.raises(UnknownRelease):
            exports.find(fold, name)


def test_release_whose_contributions_are_gone_is_not_exported_and_says_which(table: Table, tmp_path: Path) -> None:
    bob = table["bob"]
    name: Digest = next(iter(bob.fold.in_cut(bob.fold.cut).values()))[0].blob
    file = bob.home.blobs / name
    good = file.read_bytes()
    try:
        file.write_bytes(good[:-1])
        with pytest.raises(
            NotRecomputable, match=f"1 of its contributions are not here .1 damaged., first {name[:12]}"
        ):
            write(bob, "latest", tmp_path / "out")
        file.unlink()
        with pytest.raises(NotRecomputable, match="0 damaged"):
            write(bob, "latest", tmp_path / "out")
    finally:
        file.write_bytes(good)
    assert not (tmp_path / "out").exists()


def test_signing_is_done_or_refused_but_never_left_out(
    table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada, key = table["ada"], tmp_path / "key.pem"
    with pytest.raises(CannotSign, match="no key file"):
        write(ada, "latest", tmp_path / "out", sign=key)
    key.write_text("not a key")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(CannotSign, match="not installed"):
        write(ada, "latest", tmp_path / "out", sign=key)
    program = tmp_path / "model_signing"
    program.write_text("#!/bin/sh\necho 'key is locked' >&2\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(CannotSign, match="key is locked"):
        write(ada, "latest", tmp_path / "out", sign=key)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["key.pem", "model_signing"]
    assert write(ada, "latest", tmp_path / "out")["signature"] is None


def test_command_exports_without_key_daemon_or_lock_and_says_what_it_wrote(
    table: Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cyd, out = table["cyd"], tmp_path / "out"
    command = ["--home", str(cyd.home.path), "--json", "export", "latest", "--out", str(out)]
    cyd.home.binding_file.write_text(json.dumps(binding.make(cyd.key, key("cyd's transport"))))
    assert cli.run(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["release"] == exported.read(out).release == cyd.fold.releases[-1].digest
    assert told["bytes"] == sum(file.stat().st_size for file in out.iterdir())
    assert told["signature"] is None
    assert cli.run(command) == 1
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "export-exists"
    assert cli.run([word for word in [*command, "--force"] if word != "--json"]) == 0
    said = capsys.readouterr().out
    assert f"release {told['release']}" in said
    assert "signed  not: --sign" in said
    assert cli.run([*command[:-1], str(tmp_path / "x"), "--dtype", "float32"]) == 2
    assert "merged" in capsys.readouterr().err
