"""Tables 2 and 3 beside the paper's numbers."""

from collections.abc import Iterable, Iterator, Mapping

import pandas as pd

from paperlib.corpus_study import CorpusStudy
from paperlib.estimates import CANNOT_TELL, HIGHER, LOWER, UNCHANGED, Estimate, direction
from paperlib.reporting import paper
from paperlib.text_study import BEST

NOT_RUN = "not run"
"""Because the profile leaves it out, or ``experiments`` does."""

NONE = "–"
"""In a cell for which neither this project nor the paper has a value."""

NO_CHANGE = 1e-4
"""Relative change that the paper's perplexities, of two decimals, would round to nothing."""

TABLE2_NAMES = {
    "initial": "Initial model",
    "discriminator": "Without dropout, with discriminator",
    "dropout_discriminator": "With dropout, with discriminator",
    "no_discriminator": "Without dropout, without discriminator",
    "dropout_no_discriminator": "With dropout, without discriminator",
}

TABLE2_COLUMNS = ("valid_loss", "valid_ppl", "reverse_kl", "test_ppl")

TABLE3_NAMES = {
    "mos_original": "Mixture of softmaxes, original paper",
    "mos_initial": "Mixture of softmaxes, results of our training",
    "mos_finetuned": "Mixture of softmaxes, our fine-tuning",
    "mos_original_dynamic": "Mixture of softmaxes, original paper + dyn. eval.",
    "mos_finetuned_dynamic": "Mixture of softmaxes, our fine-tuning + dyn. eval.",
    "doc_original": "Direct output connection, original paper",
    "doc_initial": "Direct output connection, results of our training",
    "doc_finetuned": "Direct output connection, our fine-tuning",
}

CORPORA = {"ptb": "Penn Treebank", "wikitext2": "WikiText-2"}

HEADS = {"mos": "mixture of softmaxes", "doc": "direct output connection"}
"""In words; other heads are called as the settings call them."""


def outcome(history: list[dict]) -> str:
    """What fine-tuning did on the validation set, from the start to the best of its epochs.

    ``history`` has the total loss and the perplexity of each epoch, the first before training.
    A change within ``NO_CHANGE`` is none.
    """
    before, after = history[0], history[1:]

    def became(name: str) -> str:
        change = min(entry[name] for entry in after) / before[name] - 1
        if abs(change) < NO_CHANGE:
            return "stays"
        return "increases" if change > 0 else "decreases"

    loss, perplexity = became("loss"), became("perplexity")
    if loss == perplexity:
        return "no change" if loss == "stays" else f"both {loss.removesuffix('s')}"
    return f"loss {loss}, perplexity {perplexity}"


def head_of(study: CorpusStudy) -> str:
    """What an experiment's network is, in words, for titles."""
    head = study.settings.network.head
    return HEADS.get(head, head)


def network_of(study: CorpusStudy) -> str:
    """The same, and what text it is for."""
    return f"{head_of(study)}, {study.corpus.title.split(', first')[0]}"


def texts_of(studies: Iterable[CorpusStudy]) -> str:
    """Which texts these experiments are about and, where some have different parts of one corpus,
    which experiments each part is of."""
    experiments: dict[tuple[str, str], list[str]] = {}
    for study in studies:
        text = study.corpus.title, study.corpus.name
        experiments.setdefault(text, []).append(study.name)
    corpora = {corpus for _, corpus in experiments}
    if len(corpora) == len(experiments):
        return "; ".join(sorted(title for title, _ in experiments))
    return "; ".join(
        sorted(f"{title} ({', '.join(names)})" for (title, _), names in experiments.items())
    )


def table2(study: CorpusStudy) -> pd.DataFrame:
    """Table 2 for one experiment: the initial model and the ways to fine-tune it.

    Loss and reverse KL divergence (nats a token) are those that the row's own fine-tuning
    minimises, at its best epoch; the initial model's are measured with the discriminator. An option
    that is not run has no numbers and says so in ``outcome``.
    """
    rows = []
    for name in TABLE2_NAMES:
        option = BEST if name == "initial" else name
        row = {"option": name, "outcome": NOT_RUN}
        if option in study.options():
            run = study.finetuned(option)
            best = run.history[0 if name == "initial" else run.progress.best_epoch]
            model = study.initial if name == "initial" else run
            row |= {
                "outcome": "" if name == "initial" else outcome(run.history),
                "best_epoch": best["epoch"],
                "valid_loss": best["loss"],
                "valid_ppl": best["perplexity"],
                "reverse_kl": best["reverse_kl"],
                "test_ppl": study.perplexities(model)["test"],
            }
        theirs = paper.TABLE2[name]
        row |= {f"paper_{column}": theirs.get(column) for column in TABLE2_COLUMNS}
        rows.append(row | {"paper_outcome": theirs.get("outcome", "")})
    return pd.DataFrame(rows)


def table2_for_people(table: pd.DataFrame) -> pd.DataFrame:
    """Table 2 with the paper's value in brackets."""
    places = {"valid_loss": 5, "valid_ppl": 2, "reverse_kl": 5, "test_ppl": 2}
    titles = ("Val. loss", "Val. ppl.", "Val. rev. KL-div.", "Test ppl.")

    def cell(row: pd.Series, column: str) -> str:
        theirs = row[f"paper_{column}"]
        beside = "" if pd.isna(theirs) else f" ({theirs:.{places[column]}f})"
        value = row.get(column)
        return (NOT_RUN if pd.isna(value) else f"{value:.{places[column]}f}") + beside

    shown = {"Fine-tuning option": table["option"].map(TABLE2_NAMES)}
    for column, title in zip(TABLE2_COLUMNS, titles, strict=True):
        shown[title] = [cell(row, column) for _, row in table.iterrows()]
    shown["On validation"] = [
        row["outcome"] + (f" ({row['paper_outcome']})" if row["paper_outcome"] else "")
        for _, row in table.iterrows()
    ]
    return pd.DataFrame(shown)


CONTROL_NAMES = {
    "initial": TABLE2_NAMES["initial"],
    BEST: TABLE2_NAMES[BEST],
    "cross_entropy": "Without dropout, cross-entropy alone (our control)",
    "cross_entropy_dropout": "With dropout, cross-entropy alone (training that goes on)",
}

CONTROLS_IN_WORDS = {
    "cross_entropy": "cross-entropy alone",
    "cross_entropy_dropout": "cross-entropy alone with dropout",
}

CONTROL_COLUMNS = ("network", "option", "valid_ppl", "test_ppl", "valid_change", "test_change")


def control(studies: Iterable[CorpusStudy]) -> pd.DataFrame:
    """Fine-tuning with discriminator beside cross-entropy alone, which Table 2 has not.

    Perplexities, and their changes from the initial model's. Experiments that do not run the
    control have no rows.
    """
    rows = []
    for study in studies:
        if not study.has_control:
            continue
        models = study.models()
        start = study.perplexities(models["initial"])
        for name in CONTROL_NAMES:
            found = study.perplexities(models[name])
            changes = (found[split] - start[split] for split in ("valid", "test"))
            rows.append((study.name, name, found["valid"], found["test"], *changes))
    return pd.DataFrame(rows, columns=CONTROL_COLUMNS)


def control_for_people(table: pd.DataFrame) -> pd.DataFrame:
    """The table of :func:`control` with titles; one row that says so where it is not run."""
    names = ("Network", "Fine-tuning option")
    numbers = ("Val. ppl.", "Test ppl.", "Change, val.", "Change, test")
    if table.empty:
        return pd.DataFrame([dict.fromkeys(names + numbers, NOT_RUN)])
    forms = ("{:.2f}", "{:.2f}", "{:+.2f}", "{:+.2f}")
    options = table["option"].map(CONTROL_NAMES)
    shown = dict(zip(names, (table["network"], options), strict=True))
    for column, title, form in zip(CONTROL_COLUMNS[2:], numbers, forms, strict=True):
        shown[title] = table[column].map(form.format)
    return pd.DataFrame(shown)


def control_answer(name: str, found: Mapping[str, Estimate]) -> Iterator[str]:
    """What of the gain is the discriminator's, a sentence for each control and text, from
    :func:`paperlib.reporting.measures.of_text` of the experiment ``name``."""
    if f"{name}.cross_entropy-{BEST}.test_ppl" not in found:
        yield f"{name}: cross-entropy alone is {NOT_RUN}."
        return
    for control, by in CONTROLS_IN_WORDS.items():
        for split, title in (("valid", "validation"), ("test", "test")):

            def of(step: str, split=split) -> Estimate:
                return found[f"{name}.{step}.{split}_ppl"]

            more, gain = of(f"{control}-{BEST}"), of(f"{BEST}-initial")
            says = {
                HIGHER: "which ends higher than it",
                LOWER: "which ends lower than it",
                UNCHANGED: "which comes to the same",
                CANNOT_TELL: "and the text cannot tell which ends lower",
            }[direction(more.low, more.high)]
            yield (
                f"{name}: {title} perplexity changes by {gain.value:+.2f} with discriminator, and "
                f"by {of(f'{control}-initial').value:+.2f} by {by}, {says}: "
                f"{more.value:+.2f} points ({more.low:+.2f} to {more.high:+.2f})."
            )


def table3(studies: dict[str, CorpusStudy]) -> pd.DataFrame:
    """Table 3 from the experiments there are, by name such as ``mos_ptb``.

    Perplexities ``ptb_valid``, ``ptb_test``, ``wikitext2_valid``, ``wikitext2_test``, each with its
    ``paper_`` twin; ``ptb_status`` and ``wikitext2_status`` say where the former come from: they
    are empty where they are not run, and in the rows that quote the original papers.
    """
    rows = []
    for name in TABLE3_NAMES:
        row = {"model": name}
        for corpus in CORPORA:
            ours = _measured(studies.get(f"{name.split('_')[0]}_{corpus}"), name)
            quoted = "original" in name
            row[f"{corpus}_status"] = "measured" if ours else "quoted" if quoted else NOT_RUN
            for k, split in enumerate(("valid", "test")):
                row[f"{corpus}_{split}"] = ours and ours[split]
                row[f"paper_{corpus}_{split}"] = paper.TABLE3[name][corpus][k]
        rows.append(row)
    return pd.DataFrame(rows).astype({c: float for c in _columns()})


def table3_titles(studies: dict[str, CorpusStudy]) -> dict[str, str]:
    """What to call the text of each corpus's columns, where another one may stand in for it."""
    titles = dict(CORPORA)
    for name, study in studies.items():
        if study.corpus.name == "embedded":
            corpus = name.split("_")[1]
            titles[corpus] = f"Python's reference for {CORPORA[corpus]}"
    return titles


def table3_for_people(table: pd.DataFrame, titles: dict[str, str] = CORPORA) -> pd.DataFrame:
    """Table 3 with the paper's value in brackets; columns named by :func:`table3_titles`."""

    def cell(row: pd.Series, column: str) -> str:
        theirs = row[f"paper_{column}"]
        beside = "" if pd.isna(theirs) else f"({theirs:.2f})"
        if "original" in row["model"]:
            return beside or NONE
        ours = NOT_RUN if pd.isna(row[column]) else f"{row[column]:.2f}"
        return f"{ours} {beside}".strip()

    shown = {"Model": table["model"].map(TABLE3_NAMES)}
    for corpus, title in titles.items():
        for split in ("valid", "test"):
            cells = [cell(row, f"{corpus}_{split}") for _, row in table.iterrows()]
            shown[f"{title}, {split}"] = cells
    return pd.DataFrame(shown)


DYNAMIC_COLUMNS = ("model", "split", "static", "dynamic", "learning rate", "decay")


def dynamic_evaluation(studies: dict[str, CorpusStudy]) -> pd.DataFrame:
    """Perplexities with and without dynamic evaluation, before and after fine-tuning.

    Two rows, validation and test, for each model; with the parameters found by the grid search.
    Experiments that do not run dynamic evaluation have no rows.
    """
    rows = []
    for name, study in studies.items():
        if study.settings.dynamic is None:
            continue
        for title, model in (("initial", study.initial), ("fine-tuned", study.finetuned())):
            static, dynamic = study.perplexities(model), study.dynamic(model)
            best = (dynamic["best"]["learning_rate"], dynamic["best"]["decay"])
            for split in ("valid", "test"):
                rows.append((f"{name}, {title}", split, static[split], dynamic[split], *best))
    return pd.DataFrame(rows, columns=DYNAMIC_COLUMNS)


def dynamic_for_people(table: pd.DataFrame) -> pd.DataFrame:
    """The same to four digits; one row that says so where no experiment runs it."""
    if table.empty:
        return pd.DataFrame([dict.fromkeys(DYNAMIC_COLUMNS, NOT_RUN)])
    return table.round(4)


def _measured(study: CorpusStudy | None, row: str) -> dict | None:
    if study is None or "original" in row:
        return None
    model = study.initial if row.endswith("initial") else study.finetuned()
    return study.dynamic(model) if row.endswith("dynamic") else study.perplexities(model)


def _columns() -> list[str]:
    own = [f"{corpus}_{split}" for corpus in CORPORA for split in ("valid", "test")]
    return own + [f"paper_{column}" for column in own]
