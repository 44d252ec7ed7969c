"""``report.html``: the verdicts, the tables and figures, and what they rest on, on one page.

Nothing is fetched to show it: figures are in it, mathematics is MathML, and the cells that the
ledger points to are in it as they were executed.
"""

from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError

from paperlib import notebooks
from paperlib.checkpoints import load_json
from paperlib.files import write_text
from paperlib.reporting import cells, claims, summary
from paperlib.reporting.measures import load_measures
from paperlib.settings import Profile

SIGNS = dict(zip(claims.VERDICTS, "✓◐✗–", strict=True))
KINDS = dict(
    zip(claims.VERDICTS, ("reproduced", "partly", "not-reproduced", "not-run"), strict=True)
)

RESULTS = {
    "training_curves": "The initial model of section 3: training by two readings of the schedule",
    "table1": "",
    "table1_differences": "",
    "chosen_word": "",
    "discriminator_curves": "Discriminators of section 3",
    "figure1": "Figure 1: fine-tuning curves of the perturbed model",
    "figure1_summary": "",
    "figure2": "Figure 2: probabilities of other words",
    "proposition1": "Proposition 1",
    "ptb_training": "Training on Penn Treebank",
    "figure3": "Figure 3: discriminator training",
    "table2": "",
    "table2_control": "",
    "ptb_search": "",
    "table3": "",
    "dynamic_evaluation": "",
    "large_scale": "",
    "large_scale_bins": "",
    "large_scale_curves": "Section 4.3: training, and who gains",
    "large_cost": "Section 4.3: processes and hours",
    "readings": "",
    "synthetic_language": "The synthetic language",
    "learning_rates": "",
    "validation_changes": "",
}
"""Tables, and figures with their captions, in the order of the page."""

BEYOND = "09_beyond_the_paper"


def write(folder: Path, profile: Profile, record: dict, entries: list[dict]) -> Path:
    """Write ``report.html`` from what lies in ``folder``, and return its path; see :func:`page`."""
    return _save(folder, page(folder, profile, record, entries))


def _save(folder: Path, text: str) -> Path:
    path = folder / "report.html"
    write_text(path, text)
    return path


def page(folder: Path, profile: Profile, record: dict, entries: list[dict]) -> str:
    """The page as HTML, from what the notebooks that have a part in ``profile`` left in ``folder``.

    ``record`` is the provenance and ``entries`` the ledger; executed notebooks are read from
    ``folder/notebooks``. Raises ``KeyError`` where the ledger points to a cell that is not there or
    ``record`` lacks what is shown, and ``ValueError`` where a cell shows nothing.
    """
    planned = notebooks.planned(profile)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    shown = dict(
        profile=profile,
        record=record,
        section3=any(
            planned[entry["notebook"]].trained != "none" for entry in entries if entry.get("cell")
        ),
        entries=[dict.fromkeys(("cell", "sd", "seeds")) | entry for entry in entries],
        counts=claims.count(entries),
        controls=claims.count(entries, controls=True),
        conclusion=summary.conclusion(entries),
        parts=summary.by_part(entries),
        unmoved=summary.unmoved(record["trainings"]),
        signs=SIGNS,
        kinds=KINDS,
        measured=claims.measured,
        statement=claims.statement,
        significant=claims.significant,
        results=_results(folder, planned),
        beyond=_beyond(folder) if BEYOND in planned else [],
        evidence=_evidence(folder, entries),
        highlighting=cells.CODE.get_style_defs(".code"),
    )
    try:
        return environment.get_template("report.html.j2").render(shown)
    except UndefinedError as error:
        raise KeyError(f"the provenance is of another form: {error}") from None


def judge_anew(folder: Path) -> Path:
    """Judge the claims by today's rules, from the measures that the last run left in ``folder``.

    The plan of that run is in the settings of its provenance. Writes the ledger and
    ``report.html`` once both are made, and returns the path of the latter. Raises
    :class:`~paperlib.checkpoints.CheckpointError` where the provenance cannot be read, and
    ``KeyError``, ``OSError`` or ``ValueError`` where what lies there does not fit.
    """
    record = load_json(folder / "provenance.json")
    plan = Profile.model_validate(record["settings"])
    entries = claims.ledger(claims.declared(), load_measures(folder, plan))
    text = page(folder, plan, record, entries)
    claims.save_ledger(folder, record["profile"], record["commit"], entries)
    return _save(folder, text)


def _results(folder: Path, planned: Mapping[str, notebooks.Notebook]) -> list[dict]:
    """Tables and figures of ``RESULTS`` that these notebooks make."""
    made = {name for one in planned.values() for name in (*one.tables, *one.figures)}
    found = []
    for name, caption in RESULTS.items():
        if name not in made:
            continue
        table, image = folder / f"{name}.md", folder / f"{name}.png"
        if caption and image.is_file():
            found.append({"table": None, "image": cells.image(image), "caption": caption})
        elif not caption and table.is_file():
            text = cells.markdown(table.read_text(encoding="utf-8"))
            found.append({"table": text, "image": None})
    return found


def _beyond(folder: Path) -> list[cells.Cell]:
    """Questions, numbers and answers of the notebook beyond the paper, if its copy lies there."""
    path = folder / "notebooks" / f"{BEYOND}.ipynb"
    if not path.is_file():
        return []
    left_out = (
        "title",
        "parameters",
        "imports",
        "trainings",
        "measures_head",
        "measures",
        "asserts",
    )
    return [
        cells.rendered(BEYOND, name, cell)
        for name, cell in cells.read(path).items()
        if name not in left_out and "injected-parameters" not in cell["metadata"].get("tags", [])
    ]


def _evidence(folder: Path, entries: list[dict]) -> list[cells.Cell]:
    """The cells that the ledger points to, in the notebooks' order."""
    wanted = {(entry["notebook"], entry["cell"]) for entry in entries if entry.get("cell")}
    found = []
    for notebook in notebooks.declared():
        names = {name for other, name in wanted if other == notebook}
        if names:
            executed = cells.read(folder / "notebooks" / f"{notebook}.ipynb")
            if missing := names - executed.keys():
                raise KeyError(f"notebook {notebook} has no cell {missing.pop()!r}")
            shown = [
                cells.rendered(notebook, name, cell)
                for name, cell in executed.items()
                if name in names
            ]
            if empty := [cell.name for cell in shown if not cell.shown.strip()]:
                raise ValueError(f"notebook {notebook}, cell {empty[0]!r} shows nothing")
            found += shown
    return found
