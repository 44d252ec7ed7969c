"""Profiles: all valid, and a user's typing error is one clear sentence."""

import pytest

from paperlib import paths
from paperlib.profile_files import files, names
from paperlib.settings import SentenceTraining, SettingsError, load


def test_the_profiles_of_the_contract_are_there():
    assert {"medium", "paper", "quick", "smoke"} < set(names())


@pytest.mark.parametrize("name", names())
def test_every_profile_is_valid_and_bears_its_name(name):
    profile = load(name)
    assert profile.name == name
    assert profile.summary


@pytest.mark.parametrize("name", ["medium", "paper"])
def test_the_papers_sizes(name):
    synthetic = load(name).synthetic
    assert synthetic.language.n_words == 1000
    assert synthetic.language.gamma == 0.75
    assert synthetic.sentences.model_dump() == {
        "train": 80_000,
        "valid": 10_000,
        "test": 10_000,
        "length": 10,
    }
    assert (synthetic.model.hidden, synthetic.model.embedding, synthetic.model.layers) == (
        256,
        256,
        2,
    )
    assert synthetic.language_model.batch_size == 1024
    assert synthetic.language_model.learning_rate == synthetic.language_model.clip == 1.0


def test_the_paper_profile_has_the_published_recipes():
    """From the commands that the baselines' authors published (Yang et al., Takase et al.)."""
    corpora = load("paper").corpora
    assert {name: study.corpus for name, study in corpora.items()} == {
        "mos_ptb": "ptb",
        "doc_ptb": "ptb",
        "mos_wikitext2": "wikitext-2",
        "doc_wikitext2": "wikitext-2",
    }
    mos, doc, wiki, doc_wiki = corpora.values()
    assert doc_wiki.network.experts == doc.network.experts
    assert doc_wiki.network.hidden == wiki.network.hidden
    assert [(n.network.embedding, n.network.hidden) for n in (mos, doc, wiki)] == [
        (280, (960, 960, 620)),
        (280, (960, 960, 620)),
        (300, (1150, 1150, 650)),
    ]
    assert [n.network.experts for n in (mos, doc, wiki)] == [(0, 0, 15), (0, 5, 15), (0, 0, 15)]
    assert [n.language_model.learning_rate for n in (mos, doc, wiki)] == [20, 20, 15]
    assert [n.language_model.batch_size for n in (mos, doc, wiki)] == [12, 12, 15]
    assert all(n.language_model.clip == 0.25 and n.second_run for n in (mos, doc, wiki))
    assert (doc.network.dropout.latent, doc.network.balance, doc.language_model.nonmono) == (
        0.6,
        0.001,
        60,
    )
    for study in (mos, doc, wiki):
        assert study.discriminator.learning_rate == study.finetuning.learning_rate == 1.0
        assert study.discriminator.regularised
        assert not study.finetuning.regularised


def test_seeds_are_overridden():
    assert load("smoke", seeds=7).synthetic.seeds == 7


def test_experiments_are_chosen_by_name():
    assert list(load("smoke", experiments="doc_ptb,mos_ptb").corpora) == ["mos_ptb", "doc_ptb"]
    assert load("smoke", experiments="none").corpora == {}
    assert load("smoke", experiments="none").large is None
    large = load("smoke", experiments="large")
    assert (large.corpora, large.large) == ({}, load("smoke").large)
    there_are = "mos_ptb, doc_ptb, mos_wikitext2, large"
    with pytest.raises(SettingsError, match=f"smoke has no experiment 'lstm'; it has {there_are}"):
        load("smoke", experiments="mos_ptb,lstm")


def changed(tmp_path, old, new):
    path = tmp_path / "own.toml"
    text = (paths.PROFILES / "smoke.toml").read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8", errors="surrogateescape")
    return str(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("n_words = 60", "n_word = 60", r"own\.toml: synthetic\.language\.n_word: Extra inputs"),
        ("n_words = 60", "n_words = 0", r"synthetic\.language\.n_words: .*greater than or equal"),
        ("n_words = 60", 'n_words = "many"', r"n_words: Input should be a valid integer"),
        ("n_words = 60", "n_words = 12", r"classes name 15 words but language\.n_words is 12"),
        ("gamma = 0.75", "gamma = inf", r"synthetic\.language\.gamma: .*finite number"),
        ("n_words = 60", "n_words = \udcff", r"own\.toml is no UTF-8 at byte \d+$"),
        ("n_words = 60", "n_words = ", r"own\.toml is not valid TOML"),
        ('loss = "cross_entropy"', 'loss = "ce"', r"synthetic\.curves\.1\.loss: Input should be"),
    ],
)
def test_a_mistake_is_named(tmp_path, old, new, message):
    with pytest.raises(SettingsError, match=message):
        load(changed(tmp_path, old, new))


def test_an_unknown_profile_is_told_the_choice():
    with pytest.raises(SettingsError, match="no profile 'huge'; choose one of averaged, longer,"):
        load("huge")


def based_on(tmp_path, base, text, name="own"):
    path = tmp_path / f"{name}.toml"
    path.write_text(f'based_on = "{base}"\n{text}', encoding="utf-8")
    return str(path)


def test_a_profile_that_is_based_on_another_says_what_differs(tmp_path):
    text = "[synthetic.language_model]\nmax_epochs = 9\n[[synthetic.curves]]\n"
    text += 'loss = "cross_entropy"\nlearning_rate = 0.5\nepochs = 1\n'
    middle = based_on(tmp_path, "smoke", text)
    outer = based_on(tmp_path, middle, "[synthetic]\nseeds = 5\n", name="outer")
    found, base = load(outer), load("smoke")
    assert (found.name, found.synthetic.seeds) == ("outer", 5)
    assert [curve.learning_rate for curve in found.synthetic.curves] == [0.5]
    changed = base.synthetic.language_model.model_copy(update={"max_epochs": 9})
    assert found.synthetic.language_model == changed
    assert found.synthetic.discriminator == base.synthetic.discriminator
    assert (found.corpora, found.large) == (base.corpora, base.large)
    assert [path.name for path in files(outer)] == ["outer.toml", "own.toml", "smoke.toml"]


def test_an_error_names_all_files_that_were_read(tmp_path):
    text = "[synthetic.language_model]\nmax_epochs = 0\n"
    outer = based_on(tmp_path, based_on(tmp_path, "smoke", text), "", name="outer")
    expected = r"outer\.toml, based on own\.toml, based on smoke\.toml: synthetic\.language_model"
    with pytest.raises(SettingsError, match=expected):
        load(outer)


def test_rates_of_a_control_that_is_not_run_are_refused(tmp_path):
    text = "[corpora.doc_ptb]\ncontrol = false\n"
    with pytest.raises(SettingsError, match=r"corpora\.doc_ptb: .*search\.cross_entropy has rates"):
        load(based_on(tmp_path, "smoke", text))


def test_a_base_that_is_none_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"own\.toml: based_on: there is no profile 'huge'"):
        load(based_on(tmp_path, "huge", ""))
    own = based_on(tmp_path, tmp_path / "other.toml", "")
    based_on(tmp_path, own, "", name="other")
    with pytest.raises(SettingsError, match=r"other\.toml: based_on: '.*own\.toml' is itself"):
        load(own)
    path = tmp_path / "number.toml"
    path.write_text("based_on = 3")
    with pytest.raises(SettingsError, match=r"number\.toml: based_on: 3 is no name of a profile"):
        load(str(path))


@pytest.mark.parametrize("seeds", [0, 1001, "2", 1.5, True])
def test_no_number_of_seeds_is_refused(seeds):
    with pytest.raises(SettingsError, match=f"from 1 to 1000, not {seeds!r}"):
        load("smoke", seeds=seeds)


def test_what_names_nothing_is_refused_and_blanks_are_not():
    assert list(load("smoke", experiments=" doc_ptb, mos_ptb").corpora) == ["mos_ptb", "doc_ptb"]
    assert load("smoke", experiments=" none ").corpora == {}
    with pytest.raises(SettingsError, match="experiments are named in one text with commas"):
        load("smoke", experiments=["doc_ptb"])
    with pytest.raises(SettingsError, match="a profile is named by a text such as 'quick', not by"):
        load(None)


def test_a_profile_has_the_name_of_its_file(tmp_path):
    assert load(based_on(tmp_path, "smoke", "", name="mine")).name == "mine"
    with pytest.raises(SettingsError, match=r"mine\.toml: name: a profile is named by its file"):
        load(based_on(tmp_path, "smoke", 'name = "other"\n', name="mine"))


@pytest.mark.parametrize(
    ("update", "says"),
    [
        ({"learning_rat": 0.1}, "SentenceTraining: learning_rat: Extra inputs are not permitted"),
        ({"learning_rate": -5}, "SentenceTraining: learning_rate: Input should be greater than 0"),
        ({"schedule": "linear", "averaging": "triggered"}, "SentenceTraining: averaging is trigg"),
    ],
)
def test_what_a_copy_changes_is_checked(update, says):
    training = SentenceTraining(max_epochs=2)
    with pytest.raises(SettingsError, match=says):
        training.model_copy(update=update)
    copied = training.model_copy(update={"learning_rate": 0.1})
    assert copied == SentenceTraining(max_epochs=2, learning_rate=0.1)
    assert type(copied) is SentenceTraining
