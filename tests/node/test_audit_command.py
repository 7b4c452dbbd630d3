"""`fishernet audit` in all its forms: exit codes, formats, rules, records, and a report that a hostile feed cannot write in."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from world import DAY, World

from ledger import events
from ledger.compliance.rules import RULES
from node import config
from node.audits import auditing
from node.audits.report import html
from node.cli import run

HOSTILE = '<script src="https://evil.example/x.js">alert(1)</script><img src=x onerror=alert(2)>\u202e"\'&{0}{member}'


def home_of(world: World, folder: Path) -> Path:
    """What an auditor carries home: configuration, ledger and blobs, no key."""
    folder.mkdir()
    world.save(folder)
    (folder / "node.toml").write_text(config.template(name="auditor", model=""))
    config.update(folder / "node.toml", "node", "collective", world.collective)
    return folder


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    world = World.opened()
    world.release()
    return home_of(world, tmp_path / "clean")


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """An error, and a warning."""
    world = World.opened()
    world.published("ada", "never")
    world.release("bob")
    world.grant("ada", to=["bob"], basis=HOSTILE[:200])
    world.now += 8 * DAY
    world.alive()
    return home_of(world, tmp_path / "broken")


def audit(home: Path, *arguments: str) -> int:
    return run(["audit", "--home", str(home), *arguments])


def test_the_exit_code_says_the_verdict(clean: Path, broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit(clean) == 0
    assert capsys.readouterr().out.startswith("clean: 3 feeds, 1 releases")
    assert audit(broken) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("findings: 3 feeds, 1 releases; 1 error, 1 warning")
    assert (
        "error C7 no-run: ada published contribution 1, and no training on record has made it (run never)." in printed
    )
    assert RULES["C7"].advice in printed
    next((broken / "blobs").iterdir()).unlink()
    assert audit(broken) == 1, "what could not be checked hides no finding"
    assert "not checked: release 1" in capsys.readouterr().out
    next((clean / "blobs").iterdir()).unlink()
    assert audit(clean) == 2


def test_a_warning_counts_when_it_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = World.opened()
    world.grant("ada", to=["bob"])
    world.now += 8 * DAY
    world.alive()
    home = home_of(world, tmp_path / "home")
    assert audit(home) == 0
    assert audit(home, "--strict") == 1
    assert "warning C12 not-accepted" in capsys.readouterr().out


def test_the_rules_are_listed_and_nothing_is_audited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit(tmp_path / "nowhere", "--rules") == 0
    printed = capsys.readouterr().out
    assert all(f" {rule} " in printed for rule in RULES)
    assert audit(tmp_path / "nowhere", "--rules", "--json") == 0
    found = json.loads(capsys.readouterr().out)["rules"]
    assert [rule["id"] for rule in found] == [f"C{n}" for n in range(1, 17)]
    assert all(rule["promise"] and rule["advice"] and rule["severities"] for rule in found)


def test_the_records_of_processing_name_what_article_30_asks_for(
    clean: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit(clean, "--records", "--json") == 0
    found = {r["controller"]: r for r in json.loads(capsys.readouterr().out)["records"]}
    assert set(found) == {"ada", "bob", "cyd"}
    ada = found["ada"]
    assert (ada["dataset"], ada["purposes"], ada["tags"], ada["columns"]) == (
        "rows",
        ["model-improvement"],
        ["consented"],
        ["text"],
    )
    assert (ada["basis"], ada["retention_days"], ada["recipients"], ada["rows"]) == ("consent", 365, [], [90, 10])
    assert (ada["activities"], ada["uses"], ada["denied"]) == (["train for model-improvement"], 1, 0)
    assert audit(clean, "--records") == 0
    printed = capsys.readouterr().out
    assert "legal basis" in printed
    assert "365 days" in printed


def test_the_answer_goes_where_it_is_wanted(broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, form in (("a.json", None), ("b.html", None), ("c.txt", None), ("d", "json"), ("e", "html")):
        out = tmp_path / name
        assert audit(broken, "--out", str(out), *(["--format", form] if form else [])) == 1
        assert capsys.readouterr().out == f"findings: the report is in {out}\n"
    assert json.loads((tmp_path / "a.json").read_text()) == json.loads((tmp_path / "d").read_text())
    assert (tmp_path / "b.html").read_bytes() == (tmp_path / "e").read_bytes()
    assert (tmp_path / "c.txt").read_text().startswith("findings:")
    assert audit(broken, "--format", "json") == 1
    found = json.loads(capsys.readouterr().out)
    assert set(found["findings"][0]) == {
        "id",
        "case",
        "severity",
        "member",
        "seq",
        "event",
        "evidence",
        "text",
        "advice",
    }


# -- the report ----------------------------------------------------------------------------------------------------------
class Page(HTMLParser):
    """What a page is made of, and whether it closes what it opens."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def report(home: Path, world_id: str) -> str:
    found = auditing.run(home / "ledger.db", home / "blobs", world_id, auditing.Options(report=True))  # type: ignore[arg-type]
    assert isinstance(found, dict)
    return html(found)


def test_the_report_is_one_file_that_asks_nothing_of_the_world(broken: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    audit(broken, "--out", str(out))
    text = out.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert not {"script", "link", "img", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    assert not {
        name for name, _ in page.attributes if name.startswith("on") or name in {"src", "href", "style", "action"}
    }
    assert "http" not in re.sub(r"http-equiv", "", text)
    assert "default-src 'none'" in text
    assert "url(" not in text
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text


def test_the_report_says_what_was_found_and_draws_the_time(broken: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    audit(broken, "--out", str(out))
    page = Page(out.read_text(encoding="utf-8"))
    for said in ("Findings", "no training on record has made it", "What to do", "Records of processing activities", "ada", "bob",
                 "recomputed, the same", "A contribution that no training explains", "nobody has confirmed"):  # fmt: skip
        assert said in page.text, said
    assert "svg" in page.tags
    assert page.tags.count("polygon") == 2 + 2, "one mark for each finding, two in the legend"
    assert all(rule.title in page.text for rule in RULES.values())


def test_a_clean_report_says_so_and_the_same_audit_gives_the_same_bytes(clean: Path) -> None:
    collective = config.load(clean / "node.toml").node.collective
    first = report(clean, collective)
    assert first == report(clean, collective)
    assert "Clean" in Page(first).text
    assert "What to do" not in first


def test_a_hostile_feed_writes_nothing_into_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every text that a member may choose, in every place where it can end up."""
    names = ("<b>ada</b>", "bob&quot;", "cyd")
    world = World.opened(names)
    ada = names[0]
    world.say(
        ada, events.DataDescribed(dataset=HOSTILE[:90], licence=HOSTILE[:90], basis=HOSTILE[:90], purposes=("x",))
    )
    world.open_data(ada, HOSTILE[:90], basis=HOSTILE[:90])
    world.published(ada, HOSTILE[:90])
    decision = world.decided(ada, HOSTILE[:90], dataset=HOSTILE[:90], purpose="x")
    world.used(ada, decision, run=HOSTILE[90:])
    world.say(ada, "x" * 60, {"a": HOSTILE})
    home = home_of(world, tmp_path / "home")
    text = report(home, world.collective)
    page = Page(text)
    assert page.open == []
    assert not {"script", "img", "b>ada"} & set(page.tags)
    assert "onerror=" not in {name for name, _ in page.attributes}
    assert "\u202e" not in text
    assert "<script" in page.text, "it is shown as text"
    assert audit(home) == 1
    printed = capsys.readouterr().out
    assert "\u202e" not in printed
    assert "<script" in printed


def test_a_report_that_cannot_be_written_says_why(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit(broken, "--out", str(broken / "no" / "where.html")) != 0
    assert "no" in capsys.readouterr().err


def test_records_as_html_are_refused(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit(broken, "--records", "--format", "html") == 2
    assert "--records" in capsys.readouterr().err
