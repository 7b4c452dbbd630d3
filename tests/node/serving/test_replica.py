"""`fishernet serve` answers from exported folders alone: checked before they are served, and followed while it runs."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from released import HEAD, SPEC, export, exports, tiny, vector_of

from contrib import exported, models
from contrib.adapters import AdapterSpec
from contrib.errors import BadExport, UnknownModel
from contrib.models import tiny_folder
from node.errors import AddressError
from node.serving import replica
from node.serving.names import Names
from node.serving.replica import Replica, Wanted
from tests.support.live_engine import Live

PROMPT = "The people of the United States"


@dataclass(kw_only=True)
class Served:
    """A replica over the shared engine; `look` is what its loop does every second."""

    folder: Path
    replica: Replica
    live: Live

    def look(self) -> None:
        self.live.loop.run(self.replica.look())

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.live.port}{path}", timeout=60)

    def ask(self, model: str) -> httpx.Response:
        body = {"model": model, "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
        return httpx.post(f"http://127.0.0.1:{self.live.port}/v1/completions", json=body, timeout=60)

    def names(self) -> list[str]:
        return [model["id"] for model in self.get("/v1/models").json()["data"] if model["id"] != "view"]

    def release_of(self, model: str) -> str:
        return str(self.ask(model).headers["x-fishernet-release"])


@pytest.fixture(scope="module")
def served(live: Live, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two releases served from one folder."""
    before = live.serving.names
    live.serving.names = Names(base=before.base)
    folder = tmp_path_factory.mktemp("exports")
    exports(folder, [1, 2])
    found = Served(
        folder=folder,
        replica=Replica(folder, replica.open_first(folder), live.serving, tmp_path_factory.mktemp("scratch")),
        live=live,
    )
    found.look()
    yield found
    live.serving.names = before


def test_every_release_is_served_under_its_name_and_digest(served: Served) -> None:
    assert served.names()[:4] == ["base", "latest", "release-2", "release-1"]
    answers = {}
    for number in (1, 2):
        export_ = exported.read(served.folder / f"release-{number}")
        for name in (f"release-{number}", export_.release, export_.release[:8], f"release-{number}@{export_.release}"):
            response = served.ask(name)
            assert response.status_code == 200, response.text
            assert response.headers["x-fishernet-release"] == export_.release
            answers.setdefault(number, set()).add(response.json()["choices"][0]["text"])
    assert all(len(texts) == 1 for texts in answers.values())
    assert answers[1] != answers[2]
    assert served.ask("latest").headers["x-fishernet-model"] == "release-2"
    facts = served.replica.facts()
    assert (facts.head, facts.release) == (HEAD, exported.read(served.folder / "release-2").release)
    assert served.ask("base").json()["choices"][0]["text"] not in answers[1] | answers[2]


def test_new_export_becomes_latest_and_one_that_goes_is_withdrawn(served: Served) -> None:
    card = export(served.folder / "later", vector_of(SPEC, 7), number=7)
    served.look()
    assert served.names()[:3] == ["base", "latest", "release-7"]
    assert served.release_of("latest") == card.release
    shutil.rmtree(served.folder / "later")
    served.look()
    assert served.names() == ["base", "latest", "release-2", "release-1"]
    assert served.ask("latest").headers["x-fishernet-model"] == "release-2"
    assert served.release_of(f"latest@{card.release}") == card.release, "still found by digest for a while"


def test_replaced_export_is_served_anew_and_the_old_version_only_by_its_digest(served: Served) -> None:
    first = export(served.folder / "again", vector_of(SPEC, 8), number=8)
    served.look()
    answer = served.ask("latest")
    assert answer.headers["x-fishernet-release"] == first.release
    second = export(served.folder / "again", vector_of(SPEC, 9), number=8, force=True)
    served.look()
    assert served.release_of("release-8") == second.release
    old = served.ask(f"release-8@{first.release}")
    assert old.headers["x-fishernet-release"] == first.release
    assert old.json()["choices"] == answer.json()["choices"]
    shutil.rmtree(served.folder / "again")
    served.look()
    assert "release-8" not in served.names()


def test_folder_that_is_not_right_is_not_served_and_the_others_go_on(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    other = AdapterSpec(rank=2, alpha=8, targets=("q_proj",), seed=SPEC.seed)
    export(served.folder / "rank2", vector_of(other, 1), number=20, spec=other)
    export(served.folder / "torn", vector_of(SPEC, 21), number=21)
    file = served.folder / "torn" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    export(served.folder / "gguf", vector_of(SPEC, 22), number=22, format_="gguf-lora")
    export(served.folder / "twice", vector_of(SPEC, 3), number=2)
    for _ in range(3):
        served.look()
    assert served.names() == ["base", "latest", "release-2", "release-1"]
    assert served.release_of("release-2") == exported.read(served.folder / "release-2").release
    refused = [record.getMessage() for record in caplog.records if "event=refused" in record.getMessage()]
    for name, cause in (
        ("rank2", "another spec"),
        ("torn", "changed"),
        ("gguf", "format"),
        ("twice", "another release"),
    ):
        assert sum(f"folder={name} " in line and cause in line for line in refused) == 1, "said, and said once"
        shutil.rmtree(served.folder / name)
    served.look()


def test_export_that_is_damaged_after_it_was_served_is_withdrawn(served: Served) -> None:
    export(served.folder / "late", vector_of(SPEC, 30), number=30)
    served.look()
    assert "release-30" in served.names()
    card = served.folder / "late" / "fishernet.json"
    card.write_text(card.read_text()[:-20])
    served.look()
    assert "release-30" not in served.names()
    shutil.rmtree(served.folder / "late")
    served.look()


def test_single_export_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    with pytest.raises(BadExport, match="no export lies there"):
        replica.open_first(tmp_path)
    export(tmp_path / "one", vector_of(SPEC, 1))
    (tmp_path / "one" / "adapter_config.json").write_text("{}")
    for folder in (tmp_path, tmp_path / "one"):
        with pytest.raises(BadExport, match=r"adapter_config.json was changed"):
            replica.open_first(folder)


def test_base_is_found_by_digest_and_another_one_is_refused(tmp_path: Path) -> None:
    export(tmp_path / "one", vector_of(SPEC, 1))
    first, quiet = replica.open_first(tmp_path), lambda _stage, _part: None
    with pytest.raises(UnknownModel):
        replica.find_base(first, None, tmp_path / "cache", on_progress=quiet)
    models.add("tiny", tmp_path / "cache")
    assert replica.find_base(first, None, tmp_path / "cache", on_progress=quiet).digest == tiny().digest
    shutil.copytree(tiny_folder(), tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    with pytest.raises(BadExport, match="its base is tiny"):
        replica.find_base(first, tmp_path / "other", tmp_path, on_progress=quiet)


def test_taken_port_ends_it_with_the_reason(served: Served) -> None:
    first, port = replica.open_first(served.folder), served.live.port
    base = replica.find_base(first, tiny_folder(), served.folder, on_progress=lambda _stage, _part: None)
    with pytest.raises(AddressError, match=str(port)):
        asyncio.run(replica.run(Wanted(folder=served.folder, port=port), first, base))


@pytest.mark.slow
def test_command_serves_until_sigterm_and_leaves_no_process(tmp_path: Path) -> None:
    import psutil

    export(tmp_path / "one", vector_of(SPEC, 1))
    command = [sys.executable, "-m", "node", "serve", str(tmp_path / "one"), "--port", "0", "--json"]
    command += ["--base", str(tiny_folder()), "--api-key", "longenough"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        assert httpx.get(told["url"] + "/models", timeout=30).status_code == 401
        assert httpx.get(told["url"].removesuffix("/v1") + "/ready", timeout=30).status_code == 200
        mine = {"authorization": "Bearer longenough"}
        assert httpx.get(told["url"] + "/models", headers=mine, timeout=30).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
