"""The report page: it stands alone, its links lead somewhere, and mathematics is MathML."""

import base64
import html
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import CHECKOUT

from paperlib import paths
from paperlib.cli import main
from paperlib.reporting import cells, claims, report, summary
from paperlib.reporting.measures import load_measures
from paperlib.settings import load

FOLDER = CHECKOUT / "figures/quick"
QUICK = load("quick")


class Page(HTMLParser):
    """What a page refers to, and what it can be referred to by."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.images, self.tags = [], [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.add(tag)
        self.ids += [given["id"]] if "id" in given else []
        if tag == "img":
            self.images.append(given)
        for name in ("href", "src", "srcset", "data", "action"):
            if name in given:
                self.links.append(given[name])


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of the committed results, made anew."""
    folder = tmp_path_factory.mktemp("report") / "quick"
    folder.symlink_to(FOLDER)
    copy = tmp_path_factory.mktemp("made")
    for path in FOLDER.iterdir():
        if path.name != "report.html":
            (copy / path.name).symlink_to(path)
    entries = claims.ledger(claims.declared(), load_measures(FOLDER, QUICK))
    record = json.loads((FOLDER / "provenance.json").read_text(encoding="utf-8"))
    path = report.write(copy, QUICK, record, entries)
    return path.read_text(encoding="utf-8")


def test_nothing_is_fetched(page):
    links = Page(page).links
    assert all(link.startswith(("#", "data:")) for link in links)
    assert "<script" not in page
    assert "@import" not in page
    assert "url(" not in page


def test_every_link_leads_to_something_on_the_page(page):
    found = Page(page)
    targets = {link.removeprefix("#") for link in found.links if link.startswith("#")}
    assert targets <= set(found.ids)
    assert len([name for name in found.ids if name.startswith("claim-")]) == len(claims.declared())


def test_every_image_is_whole_and_says_what_it_is(page):
    images = Page(page).images
    assert len(images) >= 8
    for image in images:
        assert image["alt"]
        content = base64.b64decode(image["src"].split(",")[1], validate=True)
        assert content.startswith(b"\x89PNG")
        assert content.rstrip().endswith(b"IEND\xaeB`\x82")


def test_measured_claims_are_linked_to_their_cell(page):
    for entry in claims.ledger(claims.declared(), load_measures(FOLDER, QUICK)):
        if "cell" in entry:
            assert f'href="#{entry["notebook"]}-{entry["cell"]}"' in page


def test_no_mathematics_is_left_in_latex(page):
    assert "math" in Page(page).tags
    assert "\\frac" not in page.replace(r"\\frac", "")
    assert "$$" not in page


def test_mathematics_of_markdown():
    text = cells.markdown(r"Let $p < q$ and $$\frac{a_1}{b} \tag{6}$$ *so*.")
    assert text.count("<math") == 2
    assert "<mfrac>" in text
    assert "<mo>&#x0003C;</mo>" in text
    assert "<em>so</em>" in text


def test_outputs_in_their_richest_form():
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": ["a < b\n"]},
        {"output_type": "stream", "name": "stderr", "text": ["a progress bar"]},
        {"output_type": "display_data", "data": {"text/plain": ["x"], "text/html": ["<b>x</b>"]}},
        {"output_type": "execute_result", "data": {"text/plain": ["1 < 2"]}},
    ]
    cell = {"cell_type": "code", "source": ["1 < 2"], "outputs": outputs}
    shown = cells.rendered("03_table_1", "one", cell)
    assert shown.anchor == "03_table_1-one"
    assert "a &lt; b" in shown.shown
    assert "progress" not in shown.shown
    assert "<b>x</b>" in shown.shown
    assert "<pre>1 &lt; 2</pre>" in shown.shown


def test_a_claim_that_points_nowhere_is_an_error(tmp_path):
    (tmp_path / "notebooks").symlink_to(FOLDER / "notebooks")
    entry = {"notebook": "03_table_1", "cell": "nowhere"}
    with pytest.raises(KeyError, match="03_table_1 has no cell 'nowhere'"):
        report._evidence(tmp_path, [entry])


def test_a_claim_that_points_to_an_empty_cell_is_an_error(tmp_path):
    (tmp_path / "notebooks").symlink_to(FOLDER / "notebooks")
    entry = {"notebook": "01_synthetic_language", "cell": "table"}
    with pytest.raises(ValueError, match="01_synthetic_language, cell 'table' shows nothing"):
        report._evidence(tmp_path, [entry])


def test_the_conclusion_counts_and_names_key_claims():
    declared = claims.declared()
    assert summary.KEY_CLAIMS.keys() <= declared.keys()
    entries = claims.ledger(declared, load_measures(FOLDER, QUICK))
    assert {name for name, one in declared.items() if one.control} >= summary.CONTROLS.keys()
    counts, named, controls = summary.conclusion(entries)
    assert f" {claims.count(entries)[claims.REPRODUCED]} reproduce" in counts
    run = {entry["claim"] for entry in entries if entry["verdict"] != claims.NOT_RUN}
    for name, words in summary.KEY_CLAIMS.items():
        assert not declared[name].control
        assert (words in named) == (name in run)
    for name, words in summary.CONTROLS.items():
        assert (words in controls) == (name in run)
    theirs = sum(not one.control for one in declared.values())
    assert f"Of {theirs} claims of the paper" in counts
    parts = summary.by_part(entries)
    assert sum(sum(numbers.values()) for numbers in parts.values()) == theirs


@pytest.mark.parametrize(
    ("place", "part"),
    [
        ("section 3, after Proposition 1", "Proposition 1"),
        ("Proposition 1", "Proposition 1"),
        ("section 3", "Section 3, Table 1"),
        ("section 3, section 5", "Section 3, Table 1"),
        ("section 3, Figure 2", "Section 3, Figures 1 and 2"),
        ("section 4.1, Figure 3", "Section 4.1, Table 2, Figure 3"),
        ("abstract, Table 2", "Section 4.1, Table 2, Figure 3"),
        ("section 4.2, Table 3", "Section 4.2, Table 3"),
        ("section 4.3", "Section 4.3, at scale"),
        ("section 2.2", "Section 2"),
        ("abstract, section 5", "Abstract, section 5"),
    ],
)
def test_parts_of_the_paper(place, part):
    assert summary.part_of(place) == part
    assert place in {one.place for one in claims.declared().values()}


def test_consequences_of_the_proposition_are_counted_with_it():
    declared = claims.declared()
    for name in ("direction", "step_order", "step_factor"):
        assert summary.part_of(declared[name].place) == "Proposition 1"


def test_controls_are_labelled_on_the_page(page):
    controls = [one for one in claims.declared().values() if one.control]
    assert len(controls) == 12
    for one in controls:
        says = html.escape(one.says, quote=False).replace("'", "&#39;")
        assert page.count(f"Our control: {says}") == 1


def test_fine_tunings_that_kept_their_start_are_named(page):
    trainings = [
        {"study": "seed 0", "training": name, "stage": f"{kind}/0", "best_epoch": epoch}
        for name, kind, epoch in (
            ("initial_ftd", "finetuning", 0),
            ("perturbed_ftd", "finetuning", 3),
            ("discriminator_initial", "discriminator", 0),
        )
    ]
    assert summary.unmoved(trainings) == ["seed 0, initial_ftd"]
    assert "doc_ptb, finetuning_dropout_no_discriminator" in page


def test_every_entry_shows_its_reason(page):
    for entry in claims.ledger(claims.declared(), load_measures(FOLDER, QUICK)):
        assert html.escape(entry["reason"], quote=False).replace("'", "&#39;") in page


def copied(profile, folder):
    """A copy of the committed results."""
    return Path(shutil.copytree(CHECKOUT / "figures" / profile, folder / profile))


@pytest.mark.parametrize("profile", ["averaged", "longer", "medium", "paper", "quick"])
def test_committed_ledgers_are_what_the_rules_make_of_the_measures(profile, tmp_path):
    folder = copied(profile, tmp_path)
    committed = json.loads((folder / "claims.json").read_text(encoding="utf-8"))
    before = (folder / "report.html").read_text(encoding="utf-8")
    (folder / "claims.json").unlink()
    report.judge_anew(folder)
    assert json.loads((folder / "claims.json").read_text(encoding="utf-8")) == committed
    assert (folder / "report.html").read_text(encoding="utf-8") == before


def test_a_page_tells_where_was_trained_and_what_was_not_measured():
    medium, quick = (
        (CHECKOUT / "figures" / profile / "report.html").read_text(encoding="utf-8")
        for profile in ("medium", "quick")
    )
    trainings = medium.split("<h3>Trainings</h3>")[1]
    assert "<td>NVIDIA H200</td>" in trainings
    assert "<td>AMD EPYC</td>" not in trainings
    assert "Of section 3 there are no measures here" in medium
    assert "<td>AMD EPYC</td>" in quick.split("<h3>Trainings</h3>")[1]
    assert "Section 3 with 1 seed;" in quick


def test_a_report_shows_nothing_of_experiments_that_were_not_run(tmp_path):
    folder = copied("quick", tmp_path)
    record = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    plan = load("quick", experiments="none")
    record["settings"] = plan.model_dump(mode="json")
    record["trainings"] = []
    (folder / "provenance.json").write_text(json.dumps(record), encoding="utf-8")
    made = report.judge_anew(folder).read_text(encoding="utf-8")
    entries = json.loads((folder / "claims.json").read_text(encoding="utf-8"))["claims"]
    run = {entry["notebook"] for entry in entries if entry["verdict"] != claims.NOT_RUN}
    assert "03_table_1" in run
    assert not run & {"06_penn_treebank", "07_wikitext_2", "10_large_scale"}
    assert "Figure 1: fine-tuning curves" in made
    for absent in ("Figure 3: discriminator training", "Direct output connection, "):
        assert absent not in made


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda record: record.pop("settings"), "'settings'|settings"),
        (lambda record: record["settings"].update(seeds_of_old=3), "seeds_of_old"),
        (lambda record: record.pop("packages"), "packages"),
        (lambda record: record["trainings"][0].pop("device"), "device"),
    ],
)
def test_results_of_another_form_are_one_sentence_and_stay(
    damage, says, capsys, monkeypatch, tmp_path
):
    folder = copied("quick", tmp_path)
    record = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    damage(record)
    (folder / "provenance.json").write_text(json.dumps(record), encoding="utf-8")
    kept = [folder / name for name in ("claims.json", "report.html")]
    for path in kept:
        path.write_text("as it was", encoding="utf-8")
    monkeypatch.setattr(paths, "figures", lambda profile: tmp_path / profile)
    assert main(["judge", "--profile", "quick"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert re.search(says, said)
    assert "run profile quick again" in said
    assert [path.read_text(encoding="utf-8") for path in kept] == ["as it was"] * 2


def test_what_was_never_run_cannot_be_judged(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "figures", lambda profile: tmp_path / profile)
    assert main(["judge", "--profile", "smoke"]) == 2
    assert "Profile smoke has no results" in capsys.readouterr().err
