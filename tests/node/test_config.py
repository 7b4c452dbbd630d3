from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.access.egress import Policy
from node import config, sections
from node.data.egress import policy_of
from node.errors import ConfigError
from node.sections import NodeConfig

CONFIGS = sorted(
    c for c in (Path(__file__).parents[2] / "configs").glob("*.toml") if not c.name.startswith("simulation-")
)
SOURCE = Path("node.toml")
PEER = "/ip4/192.0.2.7/tcp/4242/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config.parse(text, source=SOURCE)
    return str(caught.value)


def test_the_template_holds_the_defaults_and_a_comment_for_every_key() -> None:
    text = config.template(name="clinic", model="tiny")
    parsed = config.parse(text, source=SOURCE)
    assert (parsed.node.name, parsed.node.model) == ("clinic", "tiny")
    assert parsed.model_copy(update={"node": sections.Node()}) == NodeConfig()
    lines = text.split("\n")
    keys = [i for i, line in enumerate(lines) if " = " in line and not line.startswith("#")]
    assert len(keys) == sum(len(section) for section in tomllib.loads(text).values())
    assert all(lines[i - 1].startswith("# ") for i in keys)


def test_an_empty_file_is_the_defaults() -> None:
    assert config.parse("", source=SOURCE) == NodeConfig()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_example_loads(path: Path) -> None:
    loaded = config.load(path)
    assert loaded.node.name == path.stem
    assert loaded.train.datasets


def test_the_clinic_lets_out_only_what_its_policy_names() -> None:
    clinic = config.load(next(path for path in CONFIGS if path.stem == "clinic"))
    assert clinic.train.purpose == "model-improvement"
    assert policy_of(clinic.egress) == Policy(
        max_bytes=2_000_000,
        max_norm_micro=50_000_000,
        modules=("*.q_proj", "*.v_proj"),
        purposes=("model-improvement",),
    )


def test_the_three_members_can_share_one_machine() -> None:
    three = [config.load(path) for path in CONFIGS if path.stem != "solo"]
    assert len(three) == 3
    assert len({each.network.listen for each in three}) == 3
    assert len({each.serve.port for each in three}) == 3
    assert {each.node.model for each in three} == {"smollm2-135m"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[train]\nbatch = 2\nstepz = 3", "line 3: [train] stepz is unknown, did you mean steps?"),
        ("[trian]\nsteps = 3", "[trian] is unknown, did you mean [train]?"),
        ("[node]\nport = 3", "[node] port is unknown, it belongs into [serve]"),
        ("steps = 3", "[steps] is unknown, it belongs into [train]"),
        ("[node]\nxyzzy = 3", "[node] knows name, collective, model"),
    ],
)
def test_an_unknown_key_is_an_error_that_names_the_nearest(text: str, expected: str) -> None:
    message = refused(text)
    assert message.startswith("couldn't use config node.toml: ")
    assert expected in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[train]\nsteps = "3"', 'line 2: [train] steps: input should be a valid integer (it is "3")'),
        ("[train]\nsteps = 0", "greater than or equal to 1 (it is 0)"),
        ("[train]\nauto = 1", "[train] auto: input should be a valid boolean"),
        ("[serve]\nport = 70000", "less than or equal to 65535"),
        ('[network]\npeers = ["192.0.2.7:4242"]', "line 2: [network] peers should look like /ip4/"),
        ('[network]\nlisten = ["/ip4/0.0.0.0/udp/1"]', "[network] listen should look like /ip4/"),
        ("[network]\nlisten = []", "[network] listen"),
        ('[node]\ncollective = "abc"', "64 lower-case hex digits"),
        ('[node]\nname = "a\\u0007"', "[node] name should look like"),
        ("node = 3", "[node]"),
        ("[[train]]", "[train]"),
    ],
)
def test_a_wrong_value_is_named_with_its_line_and_what_is_expected(text: str, expected: str) -> None:
    assert expected in refused(text)


def test_every_fault_is_listed_at_once() -> None:
    message = refused("[train]\nsteps = 0\nbatchh = 1")
    assert "line 2" in message
    assert "line 3" in message


def test_an_api_key_is_never_repeated_in_an_error() -> None:
    assert "hunter2" not in refused('[serve]\napi_keys = ["hunter2"]')


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        config.load(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="Is a directory"):
        config.load(tmp_path)
    (bad := tmp_path / "bad.toml").write_bytes(b'[node]\nname = "\xff"')
    with pytest.raises(ConfigError, match="not UTF-8 at byte 15"):
        config.load(bad)
    bad.write_text("[node\n")
    with pytest.raises(ConfigError, match="line 1"):
        config.load(bad)
    bad.write_text("#" * 300_000)
    with pytest.raises(ConfigError, match="over 262144 bytes"):
        config.load(bad)


def test_an_update_changes_one_key_and_keeps_every_comment(tmp_path: Path) -> None:
    (path := tmp_path / "node.toml").write_text(before := config.template(name="clinic"))
    new = config.update(path, "network", "peers", (PEER,))
    assert new.network.peers == (PEER,)
    assert config.load(path) == new
    changed = [(a, b) for a, b in zip(before.split("\n"), path.read_text().split("\n"), strict=True) if a != b]
    assert changed == [("peers = []", f'peers = ["{PEER}"]')]


def test_an_update_replaces_an_array_of_several_lines(tmp_path: Path) -> None:
    (path := tmp_path / "node.toml").write_text('[train]\ndatasets = [\n  "a", # one\n  "b",\n]\nsteps = 3\n')
    assert config.update(path, "train", "datasets", ("c",)).train.datasets == ("c",)
    assert path.read_text() == '[train]\ndatasets = ["c"]\nsteps = 3\n'


def test_an_update_adds_what_is_not_there(tmp_path: Path) -> None:
    (path := tmp_path / "node.toml").write_text("[train]\nsteps = 3\n")
    config.update(path, "train", "batch", 7)
    new = config.update(path, "serve", "port", 9)
    assert (new.train.steps, new.train.batch, new.serve.port) == (3, 7, 9)


def test_an_update_that_would_be_refused_leaves_the_file_alone(tmp_path: Path) -> None:
    (path := tmp_path / "node.toml").write_text(before := config.template(name="clinic"))
    with pytest.raises(ConfigError, match="did you mean steps"):
        config.update(path, "train", "step", 3)
    with pytest.raises(ConfigError, match="valid integer"):
        config.update(path, "train", "steps", "many")
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


@given(st.text())
def test_any_machine_name_becomes_a_node_name(text: str) -> None:
    assert config.parse(config.template(name=config.as_name(text)), source=SOURCE).node.name


@given(st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.booleans(), st.integers(-(2**53), 2**53)))
def test_a_literal_reads_back(value: str | bool | int) -> None:
    assert config.value_of(config.literal(value)) == value


def test_steps_and_rate_are_numbers_or_searched_for() -> None:
    train = config.parse('[train]\nsteps = "auto"\nlearning_rate = "auto"\n', source=SOURCE).train
    assert (train.steps, train.learning_rate) == (sections.AUTO, sections.AUTO)
    for wrong in ("steps = 0", "steps = 1.5", 'steps = "many"', "learning_rate = 0.0", 'learning_rate = "fast"'):
        text = refused(f"[train]\n{wrong}\n")
        assert f"line 2: [train] {wrong.split()[0]}" in text
        assert "'auto'" in text
