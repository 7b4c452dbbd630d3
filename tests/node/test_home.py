from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ledger.store import Store
from node.errors import ConfigError, HomeBusy, HomeError, HomeNotEmpty, IdentityError, NotAHome
from node.home import Home, model_cache

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from node.home import Home
with Home(path=Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def test_init_makes_everything_private_and_complete(tmp_path: Path) -> None:
    home = Home.init(tmp_path / "deep" / "home", name="clinic", passphrase=None)
    assert home.read_config().node.name == "clinic"
    assert home.unlock(None).member
    assert {path.name for path in home.path.iterdir() if path.is_dir()} == {"blobs", "keys", "run", "runs", "views"}
    modes = {path.name: path.stat().st_mode & 0o077 for path in [home.path, *home.path.rglob("*")]}
    assert set(modes.values()) == {0}
    with Store.open(home.ledger_db) as store:
        assert store.collectives() == []
    assert Home.open(home.path) == home


def test_init_refuses_a_directory_with_anything_in_it_and_touches_nothing(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(HomeNotEmpty) as caught:
        Home.init(tmp_path, name="clinic", passphrase=None)
    assert "--home" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_second_init_is_refused_and_the_keys_stay(tmp_path: Path) -> None:
    home = Home.init(tmp_path / "home", name="clinic", passphrase=None)
    before = home.ledger_key.read_bytes()
    with pytest.raises(HomeNotEmpty):
        Home.init(home.path, name="clinic", passphrase=None)
    assert home.ledger_key.read_bytes() == before


def test_a_failed_init_leaves_an_empty_directory_so_that_it_can_be_tried_again(tmp_path: Path) -> None:
    with pytest.raises(IdentityError):
        Home.init(tmp_path / "home", name="clinic", passphrase="")  # refused after the directories were made
    assert list((tmp_path / "home").iterdir()) == []
    Home.init(tmp_path / "home", name="clinic", passphrase=None)


def test_init_refuses_a_bad_config_before_it_makes_anything(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean steps"):
        Home.init(tmp_path / "home", passphrase=None, toml="[train]\nstep = 1")
    assert not (tmp_path / "home").exists()


def test_open_says_how_to_make_a_node(tmp_path: Path) -> None:
    with pytest.raises(NotAHome, match="no node lives there") as caught:
        Home.open(tmp_path)
    assert caught.value.hint == f"fishernet init --home {tmp_path}"


def test_a_second_process_on_the_same_home_is_told_which_one_holds_it(tmp_path: Path) -> None:
    home = Home(path=tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], env=environment, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(HomeBusy, match=f"process {other.pid} runs on this home"), home.lock():
            pass
        other.send_signal(signal.SIGKILL)
        other.wait(10)
    with home.lock():  # a killed process holds nothing
        pass


def test_the_lock_can_be_taken_again_after_it_was_given_back(tmp_path: Path) -> None:
    home = Home(path=tmp_path)
    for _ in range(2):
        with home.lock():
            assert (home.run / "daemon.lock").read_text() == f"{os.getpid()}\n"


def test_sockets_lie_in_the_home_when_its_path_is_short_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/tmp")
    short = Home(path=Path("/tmp") / f"h{os.getpid()}")
    short.path.mkdir(mode=0o700)
    try:
        assert short.control_socket() == short.run / "control.sock"
        assert list(short.path.iterdir()) == []  # asking makes nothing
        assert short.sockets() == short.run
    finally:
        short.run.rmdir()
        short.path.rmdir()


def test_sockets_of_a_long_path_lie_in_a_private_short_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    home = Home(path=tmp_path / ("long" * 30))
    folder = home.control_socket().parent
    assert not folder.exists()
    assert home.sockets() == folder
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    assert home.sockets() == folder
    assert Home(path=tmp_path / ("else" * 30)).sockets() != folder
    folder.chmod(0o755)
    with pytest.raises(HomeError, match="not a private directory"):
        home.sockets()
    folder.chmod(0o700)
    home.tidy()
    assert not folder.exists()
    folder.symlink_to(tmp_path)
    with pytest.raises(HomeError, match="not a private directory"):
        home.sockets()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"FISHERNET_CACHE": "/a/b", "XDG_CACHE_HOME": "/x"}, Path("/a/b")),
        ({"XDG_CACHE_HOME": "/x"}, Path("/x/fishernet")),
        ({}, Path.home() / ".cache" / "fishernet"),
    ],
)
def test_the_model_cache_is_where_the_environment_says(environ: dict[str, str], expected: Path) -> None:
    assert model_cache(environ) == expected
