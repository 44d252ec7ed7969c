"""Section 4.3, from the stream or the folder to the table."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from paperlib import large_study, notebooks, paths
from paperlib.cli import main
from paperlib.corpora import CorpusError
from paperlib.large_study import LargeStudy, run_large
from paperlib.reporting import large_tables, measures
from paperlib.scaling import throughput
from paperlib.settings import load

PROFILE = load("smoke")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAPERLIB_RUNS", str(tmp_path_factory.mktemp("runs")))
        yield LargeStudy(PROFILE)


@pytest.fixture
def folder_study(tmp_path, monkeypatch):
    """The study of a folder of text, its parts of a few hundred bytes."""
    texts = tmp_path / "data" / "large"
    texts.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(60):
        lines = [" ".join(f"w{w}" for w in generator.geometric(0.2, 6)) for _ in range(5)]
        (texts / f"{number:02}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.setenv("PAPERLIB_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PAPERLIB_RUNS", str(tmp_path / "runs"))
    blocks = tuple(
        block.model_copy(update={"words": 4}) if block.words else block
        for block in PROFILE.large.network.blocks
    )
    network = PROFILE.large.network.model_copy(update={"blocks": blocks})
    update = {
        "folder": "large",
        "part_bytes": 2000,
        "words": 20,
        "held_out": 0.1,
        "network": network,
    }
    own = PROFILE.large.model_copy(update=update | {"network": network})
    return LargeStudy(PROFILE.model_copy(update={"large": own}))


def test_true_divergences_against_sums_word_by_word(study):
    """p from probabilities of whole sentences, q from one sentence at a time."""
    found = study.divergences(study.initial)
    length, language = study.text.length, study.text.language
    assert found["forward"].shape == found["reverse"].shape == (15, length)
    sentences = study.text.test.reshape(-1, length + 1)[:, :-1].astype(np.int64)
    model = study.initial.model
    for row, at in ((0, 0), (3, 1), (14, length - 1)):
        context = sentences[row, :at]
        text = torch.tensor([0, *context], device=study.device)[:, None]
        with torch.no_grad():
            encoded, _ = model.encode(text, model.start(1))
            q = model.log_q(encoded)[-1, 0].double().exp().cpu().numpy()[1:]
        q = q / q.sum()
        every = [[*context, word] for word in range(1, language.n_words + 1)]
        p = np.exp(language.log_prob(np.array(every))[:, -1])
        assert p.sum() == pytest.approx(1)
        forward = sum(p * np.log(p / q))
        reverse = sum(q * np.log(q / p))
        assert found["forward"][row, at] == pytest.approx(forward, rel=1e-5)
        assert found["reverse"][row, at] == pytest.approx(reverse, rel=1e-5)


def test_changes_of_the_divergences_are_those_of_the_two_models(study):
    table = study.change_of_divergences().set_index("divergence")
    before, after = study.divergences(study.initial), study.divergences(study.finetuned())
    for name in ("forward", "reverse"):
        row = table.loc[name]
        assert row["before"] == pytest.approx(before[name].mean())
        assert row["change"] == pytest.approx(after[name].mean() - before[name].mean())
        assert row["low"] <= row["change"] <= row["high"]


def test_who_gains_is_about_words_alone_by_their_rank_in_the_first_part(study):
    table = study.who_gains()
    ids = study.text.test
    before, after = (
        study.token_log_probs(one)["test"].astype(float)
        for one in (study.initial, study.finetuned())
    )
    counts = Counter(study.text.train_part(0).tolist())
    del counts[0]
    ranked = sorted(range(1, study.text.n_words), key=lambda word: (-counts[word], word))
    top = np.isin(ids, ranked[:10])
    first = table.set_index("bin").loc["1–10"]
    assert first["tokens"] == top.sum()
    assert first["mean"] == pytest.approx((after - before)[top].mean(), abs=1e-9)
    assert table["tokens"].sum() == (ids != 0).sum()


def test_the_true_log_probability_of_the_test_text(study):
    words = study.text.test.reshape(-1, study.text.length + 1)[:, :-1].astype(np.int64)
    assert study.test_log_p.sum() == pytest.approx(study.text.language.log_prob(words).sum())
    assert study.test_log_p.shape == study.text.test.shape


def test_cross_entropy_alone_sees_the_parts_of_fine_tuning(study):
    assert study.cross_entropy.progress.epoch == study.finetuned().progress.epoch == 2
    start = study.cross_entropy.history[0]["perplexity"]
    assert start == pytest.approx(study.finetuned().history[0]["perplexity"])
    assert study.cross_entropy.history[-1]["perplexity"] < start


def test_the_table_stands_beside_the_paper(study):
    table = large_tables.large_scale(study).set_index("run")
    assert table.loc["paper", ["initial", "finetuned"]].tolist() == [129.08, 127.46]
    assert table.loc["paper", "change"] == pytest.approx(-1.255, abs=1e-3)
    ours = table.loc["ours"]
    for column, trained in (("initial", study.initial), ("finetuned", study.finetuned())):
        log_q = study.token_log_probs(trained)["test"].astype(float)
        assert ours[column] == pytest.approx(np.exp(-log_q.mean()))
    assert ours["true"] < ours["initial"]
    assert ours["seen"] == 3 * 60 * (study.text.length + 1)
    shown = large_tables.large_scale_for_people(table.reset_index()).set_index("run")
    assert shown.loc["paper", "true"] == shown.loc["paper", large_tables.TITLES["seen"]] == "–"
    assert "nan" not in shown.to_string()


def test_parameters_of_the_parts_of_the_network(study):
    table = large_tables.layers(study).set_index("part")["parameters"]
    total = sum(p.numel() for p in study.initial.model.parameters())
    assert table[["embedding", "layers", "head"]].sum() == total
    assert table["a full softmax instead"] == 60 * (12 + 1)


def test_a_folder_of_text_takes_the_place_of_the_stream(folder_study, study):
    assert study.knows_p
    assert not folder_study.knows_p
    assert study.checksums == {}
    (checksum,) = folder_study.checksums.values()
    index = Path(folder_study.text.shards.address) / "index.json"
    assert checksum == hashlib.sha256(index.read_bytes()).hexdigest()
    assert folder_study.text.n_words == 20
    parts = [len(folder_study.text.train_part(epoch)) for epoch in range(3)]
    assert folder_study.tokens_seen(3) == sum(parts)
    table = large_tables.large_scale(folder_study).set_index("run")
    assert np.isnan(table.loc["ours", "true"])
    assert table.loc["ours", "text"] == "text of the folder large"
    assert table.loc["ours", "seen"] == sum(parts)
    assert set(folder_study.who_gains()["bin"]) <= {"1–10", "11–20"}
    assert folder_study.change_of_divergences().empty


@pytest.mark.parametrize(("threads", "here", "number"), [("3", "1", 3), ("2", "4", 8)])
def test_a_folder_is_prepared_in_as_many_processes_as_may_work(
    threads, here, number, folder_study, monkeypatch
):
    """Of several that train together, the others on the machine wait meanwhile."""
    asked = []
    monkeypatch.setattr(large_study, "prepare", lambda folder, options, n: asked.append(n))
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
    large_study._shards(folder_study.settings)
    assert asked == [number]


def test_epochs_of_several_parts_are_counted_in_parts(study):
    own = PROFILE.large.model_copy(update={"parts_at_once": 2})
    other = LargeStudy(PROFILE.model_copy(update={"large": own}))
    table = large_tables.large_scale(other).set_index("run")
    assert table.loc["ours", "discriminator"] == 2 * other.discriminator.progress.epoch
    assert table.loc["ours", "seen"] == 2 * other.initial.progress.epoch * other.part_tokens


def test_shards_made_elsewhere_give_the_same_study(folder_study):
    address = folder_study.text.shards.address
    own = folder_study.settings.model_copy(update={"shards": address})
    other = LargeStudy(PROFILE.model_copy(update={"large": own}))
    assert other.title.startswith("text of the shards")
    assert other.initial.folder == folder_study.initial.folder


def test_text_too_short_for_its_splits_is_refused(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "data" / "large"
    folder.mkdir(parents=True)
    (folder / "one.txt").write_text("one document only\n", encoding="utf-8")
    monkeypatch.setenv("PAPERLIB_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PAPERLIB_RUNS", str(tmp_path / "runs"))
    text = (paths.PROFILES / "smoke.toml").read_text(encoding="utf-8")
    profile = tmp_path / "own.toml"
    profile.write_text(text.replace("[large]", '[large]\nfolder = "large"'), encoding="utf-8")
    assert main(["large", "--profile", str(profile), "--output", str(tmp_path / "x.json")]) == 1
    assert "the valid split is empty" in capsys.readouterr().err


def test_a_folder_that_is_not_there_leaves_the_stream(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_DATA", str(tmp_path))
    own = PROFILE.large.model_copy(update={"folder": "large"})
    assert LargeStudy(PROFILE.model_copy(update={"large": own})).knows_p


def test_a_place_for_texts_that_is_none_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_DATA", str(tmp_path / "none"))
    own = PROFILE.large.model_copy(update={"folder": "large"})
    with pytest.raises(CorpusError, match="/none, which is no folder; correct or unset it"):
        LargeStudy(PROFILE.model_copy(update={"large": own}))


def test_a_folder_of_text_may_lie_in_the_project(folder_study, tmp_path, monkeypatch):
    monkeypatch.delenv("PAPERLIB_DATA")
    monkeypatch.setattr(paths, "PROJECT", tmp_path)
    again = LargeStudy(PROFILE.model_copy(update={"large": folder_study.settings}))
    assert again.text_key == folder_study.text_key
    # Shards, too, are found from whatever folder.
    address = Path(folder_study.text.shards.address).relative_to(tmp_path)
    own = folder_study.settings.model_copy(update={"shards": str(address)})
    shards = LargeStudy(PROFILE.model_copy(update={"large": own}))
    assert shards.text_key == folder_study.text_key


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("words = 60", "words = 9", "the synthetic language is too small: the first 1 blocks"),
        ("words = 60", 'words = 60\nshards = "s3://bucket/x"', "s3://bucket/x holds no shards"),
    ],
)
def test_what_the_user_has_to_change_is_one_sentence(old, new, message, tmp_path, capsys):
    before, large = (paths.PROFILES / "smoke.toml").read_text(encoding="utf-8").split("[large]")
    profile = tmp_path / "own.toml"
    profile.write_text(f"{before}[large]{large.replace(old, new, 1)}", encoding="utf-8")
    assert main(["large", "--profile", str(profile), "--output", str(tmp_path / "x.json")]) == 1
    said = capsys.readouterr().err.splitlines()
    assert message in said[-1]
    assert not any("Traceback" in line for line in said)


def test_more_streams_than_a_part_has_words_are_one_sentence(tmp_path, capsys):
    command = ["throughput", "--profile", "smoke", "--output", str(tmp_path / "x.json")]
    assert main([*command, "--streams", "100000"]) == 1
    said = capsys.readouterr().err
    assert "is too short" in said
    assert "Traceback" not in said


def test_synthetic_text_is_never_the_papers(study):
    assert not measures.large_at_paper_size(study)
    assert not measures.large_at_paper_size(LargeStudy(load("paper")))


def test_the_command_says_where_each_training_lies(tmp_path):
    output = tmp_path / "large.json"
    assert main(["large", "--profile", "smoke", "--output", str(output)]) == 0
    made = json.loads(output.read_text(encoding="utf-8"))
    assert set(made["trainings"]) == {
        "language_model",
        "discriminator",
        "finetuning_discriminator",
        "finetuning_cross_entropy",
    }
    assert made == run_large(PROFILE)


def test_the_command_refuses_a_profile_without_the_block(tmp_path, capsys):
    text = (paths.PROFILES / "smoke.toml").read_text(encoding="utf-8")
    profile = tmp_path / "plain.toml"
    profile.write_text(text[: text.index("# Section 4.3")], encoding="utf-8")
    assert main(["large", "--profile", str(profile), "--output", str(tmp_path / "x.json")]) == 2
    assert capsys.readouterr().err == f"Profile {profile} has no [large].\n"


def test_timing_writes_what_it_found(tmp_path):
    output = tmp_path / "found.json"
    command = ["throughput", "--profile", "smoke", "--streams", "5", "--output", str(output)]
    assert main(command) == 0
    found = json.loads(output.read_text(encoding="utf-8"))
    assert (found["processes"], found["streams"]) == (1, 5)
    assert found["words_per_second"] > 0
    assert found["exchange"] == 0


def test_timing_says_the_vocabulary_of_the_text(folder_study):
    assert folder_study.settings.words == folder_study.text.n_words
    own = folder_study.settings.model_copy(
        update={"words": 30, "shards": folder_study.text.shards.address}
    )
    found = throughput(PROFILE.model_copy(update={"large": own}), 2)
    assert found["n_words"] == folder_study.text.n_words


@pytest.mark.parametrize("number", ["0", "-2", "two", "1.5"])
def test_a_number_of_processes_that_is_none_is_refused(number, tmp_path, capsys):
    command = ["large", "--profile", "smoke", "--output", str(tmp_path / "x.json")]
    with pytest.raises(SystemExit) as raised:
        main([*command, f"--processes={number}"])
    assert raised.value.code == 2
    assert f"{number!r} is no whole number of at least 1" in capsys.readouterr().err


def test_the_notebook_is_left_out_where_the_profile_has_no_block():
    notebook = notebooks.declared()["10_large_scale"]
    assert notebook.has_part_in(load("smoke", experiments="large"))
    assert not notebook.has_part_in(load("smoke", experiments="none"))
