"""The home directory of one node: where each file lies, making it, opening it, and the lock that one process holds.

    node.toml            the operator writes it; trusted; 0600 because it may hold API keys
    keys/                see `node.keys.identity`, and `node.serving.access.keyfile` for api.json; trusted; keep a copy
    recovery.pem         the recovery key after `init`; belongs offline, not here
    ledger.db            every feed this node holds; verified on arrival and by `audit`; keep a copy
    rows.db              private rows, their salts and commitments; trusted; keep a copy
    blobs/<digest>       contributions; named by digest, so they need no trust; fetched again when lost
    blobs/dropped.txt    what went for want of room (`node.collective.keeping`); without it some is fetched once more
    views/<digest>.npy   merged vectors; computed again when lost
    runs/<run id>/       files of one training run; may be lost with that run
    served.json          counts of answered requests that no event holds yet (`node.serving.access.log`); ours
    run/                 lock and sockets of the running daemon, worthless after it; and what it remembers of peers:
                         addresses.json and bans.json, which may be lost
Knows no protocol and opens no network. Invariant: directories are 0700, and at most one process holds the lock.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from node.errors import HomeBusy, HomeError, HomeNotEmpty, NotAHome
from node.files import write_new
from protocol.ids import Digest

if TYPE_CHECKING:
    from node.keys.identity import Identity
    from node.sections import NodeConfig

_SOCKET_ROOM = 107 - 44  # sun_path holds 107 bytes; a random socket name of the network daemon takes up to 44


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """Paths of one node's home; `Home.init` makes one, `Home.open` takes an existing one."""

    path: Path

    @classmethod
    def init(
        cls, path: Path, *, passphrase: str | None, name: str = "node", toml: str | None = None, keys: bool = True
    ) -> Home:
        """Make a node: keys, config (`toml`, else the commented template) and an empty ledger.

        The recovery key lies in `recovery.pem` until the operator moves it away. Without `keys` none are made: they are
        restored from a backup then.

        What was made is removed again when a step fails, so a full disk leaves an empty directory.

        Raises:
            HomeNotEmpty: something lies there already; nothing is touched.
            ConfigError: `toml` or `name` is not acceptable.
        """
        from ledger.store import Store
        from node import config
        from node.keys import identity

        home = cls(path=path.expanduser().absolute())
        text = config.template(name=name) if toml is None else toml
        chosen = config.parse(text, source=home.config_file)
        _empty_directory(home.path)
        try:
            for folder in (home.keys, home.blobs, home.runs, home.views, home.run):
                folder.mkdir(mode=0o700)
            if keys:
                identity.create(home, passphrase, post_quantum=chosen.ledger.post_quantum)
            Store.open(home.ledger_db).close()
            write_new(home.config_file, text.encode(), mode=0o600)  # last: its presence says the home is whole
        except BaseException:
            _clear(home.path)
            raise
        return home

    @classmethod
    def open(cls, path: Path) -> Home:
        """Take the home at `path`.

        Raises:
            NotAHome: no node lives there.
        """
        home = cls(path=path.expanduser().absolute())
        if not home.config_file.is_file():
            raise NotAHome(f"couldn't open home {home.path}: no node lives there", hint=f"fishernet init --home {path}")
        return home

    @property
    def config_file(self) -> Path:
        """The operator's configuration."""
        return self.path / "node.toml"

    @property
    def keys(self) -> Path:
        """The folder of private keys."""
        return self.path / "keys"

    @property
    def ledger_key(self) -> Path:
        """PKCS#8 PEM of the key that is the member."""
        return self.keys / "ledger.pem"

    @property
    def transport_key(self) -> Path:
        """The libp2p identity file that the network daemon reads."""
        return self.keys / "transport.key"

    @property
    def witness_key(self) -> Path:
        """PKCS#8 PEM of the key that cosigns other members' heads."""
        return self.keys / "witness.key"

    @property
    def post_quantum_key(self) -> Path:
        """PKCS#8 PEM of the ML-DSA-44 key that cosigns beside it, if there is one."""
        return self.keys / "witness-pq.key"

    @property
    def recovery_commitment(self) -> Path:
        """SHA-256 of the public recovery key: what the feed commits to."""
        return self.keys / "recovery.sha256"

    @property
    def recovery_file(self) -> Path:
        """The recovery key as `init` leaves it for the operator, who moves it offline."""
        return self.path / "recovery.pem"

    @property
    def next_keys(self) -> Path:
        """The keys that take over the seat when its succession is decided."""
        return self.keys / "next"

    @property
    def binding_file(self) -> Path:
        """The statement of both keys that they belong together."""
        return self.keys / "binding.json"

    @property
    def rows_key(self) -> Path:
        """The data key of sealed rows, locked by the passphrase."""
        return self.keys / "rows.key"

    @property
    def api_keys(self) -> Path:
        """API keys of applications, as hashes."""
        return self.keys / "api.json"

    @property
    def served_counts(self) -> Path:
        """What of the decisions on API keys is in no event yet."""
        return self.path / "served.json"

    @property
    def ledger_db(self) -> Path:
        """All feeds this node holds."""
        return self.path / "ledger.db"

    @property
    def rows_db(self) -> Path:
        """Private rows."""
        return self.path / "rows.db"

    @property
    def withheld_rows(self) -> Path:
        """Rows of a backup that may hold what was forgotten after it was made: never read, the operator decides."""
        return self.path / "rows-withheld.db"

    @property
    def blobs(self) -> Path:
        """Contribution blobs by digest."""
        return self.path / "blobs"

    @property
    def runs(self) -> Path:
        """One folder per training run."""
        return self.path / "runs"

    @property
    def views(self) -> Path:
        """Merged vectors, float32 [P], by model digest."""
        return self.path / "views"

    @property
    def run(self) -> Path:
        """Lock and sockets of the running daemon."""
        return self.path / "run"

    @property
    def bans(self) -> Path:
        """Who is banned; losing it lifts the bans (see `node.guarding.bans`)."""
        return self.run / "bans.json"

    def view_file(self, model: Digest) -> Path:
        """Where the vector of model `model` lies."""
        return self.views / f"{model}.npy"

    def run_folder(self, run: str) -> Path:
        """The folder of one training run."""
        return self.runs / run

    def read_config(self) -> NodeConfig:
        """Read the configuration (raises ConfigError)."""
        from node import config

        return config.load(self.config_file)

    def unlock(self, passphrase: str | None) -> Identity:
        """Unlock and check the keys (raises what `identity.load` raises)."""
        from node.keys import identity

        return identity.load(self, passphrase)

    def sockets(self) -> Path:
        """The private folder for unix sockets, made when missing: `run/`, or a short one elsewhere when that is too long.

        Raises:
            HomeError: the short folder is there and belongs to somebody else.
        """
        folder = self._socket_folder()
        folder.mkdir(mode=0o700, exist_ok=True)
        _refuse_foreign(folder)
        return folder

    def control_socket(self) -> Path:
        """The unix socket on which the daemon of this home answers; nothing is made (raises HomeError like `sockets`)."""
        folder = self._socket_folder()
        _refuse_foreign(folder)
        return folder / "control.sock"

    def tidy(self) -> None:
        """Remove the short socket folder when nothing is left in it."""
        folder = self._socket_folder()
        if folder != self.run:
            with suppress(OSError):  # not there, or still in use
                folder.rmdir()

    def _socket_folder(self) -> Path:
        if len(os.fsencode(self.run)) <= _SOCKET_ROOM:
            return self.run
        name = hashlib.sha256(os.fsencode(self.path.resolve())).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"fishernet-{name}"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the home for this process; the kernel lets go of it when the process ends, however it ends.

        Raises:
            HomeBusy: another process holds it; its pid is named.
        """
        self.run.mkdir(mode=0o700, exist_ok=True)
        with (self.run / "daemon.lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                owner = file.read(20).strip() or "unknown"
                raise HomeBusy(
                    f"couldn't lock {self.path}: process {owner} runs on this home",
                    hint="ask it with: fishernet status; one home belongs to one daemon",
                ) from None
            with suppress(OSError):  # on a full disk the next one reads "unknown": only a word for people
                file.truncate(0)
                os.write(file.fileno(), f"{os.getpid()}\n".encode())
            try:
                yield
            finally:
                self.tidy()
                with suppress(
                    OSError
                ):  # the disk may have turned read-only: what ended the process is the error to show
                    file.truncate(0)


def model_cache(environ: Mapping[str, str] = os.environ) -> Path:
    """Where base models lie for all nodes of this user."""
    if chosen := environ.get("FISHERNET_CACHE"):
        return Path(chosen).expanduser().absolute()
    base = environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fishernet"


def _refuse_foreign(folder: Path) -> None:
    try:
        facts = folder.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        raise HomeError(
            f"couldn't use {folder} for sockets: not a private directory of this user", hint=f"run: chmod 700 {folder}"
        )


def _empty_directory(path: Path) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(path.iterdir()):
        raise HomeNotEmpty(
            f"couldn't make a node in {path}: the directory is not empty",
            hint="name another directory with --home; an existing node is never overwritten",
        )
    path.chmod(0o700)


def _clear(path: Path) -> None:
    for item in path.iterdir():
        if item.is_dir():
            shutil.rmtree(item, ignore_errors=True)
        else:
            item.unlink(missing_ok=True)
