"""Corpora: encoding, bad input, where texts are looked for, the cache."""

import hashlib
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paperlib import paths
from paperlib.corpora import Corpus, CorpusError, cache, embedded, load, streams, text
from paperlib.corpora.known import KNOWN, Known
from paperlib.corpora.text import SPLITS, Text, encode

TEXTS = {
    "train": "the cat saw the dog\n\nthe dog ran\n",
    "valid": "the dog saw the cat\n",
    "test": "cat saw dog\nthe ran",
}

DATA = os.environ.get("PAPERLIB_DATA", "")


def write(folder: Path, pattern: str = "{split}.txt", **texts: str | bytes) -> Path:
    """A folder with the three small texts, some of them replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, own in (TEXTS | texts).items():
        data = own if isinstance(own, bytes) else own.encode()
        (folder / pattern.format(split=split)).write_bytes(data)
    return folder


def known(**replaced) -> Known:
    """The small texts as a published corpus."""
    sha256 = {split: hashlib.sha256(own.encode()).hexdigest() for split, own in TEXTS.items()}
    given = {"title": "Tiny", "file": "tiny.{split}.txt", "sha256": sha256, "mirrors": ()}
    return Known(**given | replaced)


def spelled(corpus: Corpus, split: str) -> list[str]:
    """The words of a split."""
    return [corpus.words[token] for token in getattr(corpus, split)]


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch) -> Path:
    """An empty project with runs of its own, and no other folder to look for corpora in."""
    monkeypatch.delenv("PAPERLIB_DATA", raising=False)
    monkeypatch.setenv("PAPERLIB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(paths, "PROJECT", tmp_path / "project")
    return tmp_path / "project"


# Encoding


def test_tokens_by_hand(tmp_path):
    corpus = load(str(write(tmp_path / "own")))
    # the: 3, <eos>: 3 (one for the empty line), dog: 2, cat, saw, ran: 1 in order of appearance
    assert corpus.words == ("the", "<eos>", "dog", "cat", "saw", "ran")
    assert corpus.train.tolist() == [0, 3, 4, 0, 2, 1, 1, 0, 2, 5, 1]
    assert corpus.valid.tolist() == [0, 2, 4, 0, 3, 1]
    assert corpus.test.tolist() == [3, 4, 2, 1, 0, 5, 1]
    assert (corpus.n_words, corpus.eos) == (6, 1)
    assert corpus.train.dtype == np.int32
    assert corpus.checksums["valid"] == hashlib.sha256(TEXTS["valid"].encode()).hexdigest()


WORDS = st.text("aß語'<>.", min_size=1, max_size=3)
LINES = st.lists(st.lists(WORDS, max_size=6), min_size=1, max_size=12).filter(any)


@given(LINES, st.integers(0, 40))
def test_encoding_loses_nothing_and_counts_frequencies(lines, piece):
    data = "".join(" ".join(line) + "\n" for line in lines).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "_PIECE", piece)
        words, tokens = encode({split: Text(split, data) for split in SPLITS})
    expected = [word for line in lines for word in (*line, "<eos>")]
    for split in SPLITS:
        assert [words[token] for token in tokens[split]] == expected
    frequencies = np.bincount(tokens["train"], minlength=len(words))
    assert frequencies.tolist() == [Counter(expected)[word] for word in words]
    order = [(-expected.count(word), expected.index(word)) for word in words]
    assert order == sorted(order)


@pytest.mark.parametrize(
    "data", [b"a b\r\nc\r\n", b"\xef\xbb\xbfa b\nc", b"\ta   b \nc\n", "a\u00a0b\nc\n".encode()]
)
def test_line_breaks_marks_and_spaces_of_other_editors(data):
    (words,) = Text("text", data).pieces()
    assert words == ["a", "b", "<eos>", "c", "<eos>"]


# Bad input


@pytest.mark.parametrize("piece", [0, 1 << 16])
@pytest.mark.parametrize(
    ("replaced", "wanted"),
    [
        ({"valid": b"fine\n\xff\xfe\n"}, "valid.txt, line 2: byte 0xff is not UTF-8"),
        ({"test": ""}, "test.txt has no words"),
        ({"train": " \n\n"}, "train.txt has no words"),
        ({"train": "a\nb <eos>\n"}, "train.txt, line 2: the word <eos>"),
        ({"valid": "the cat\nthe cow saw\n"}, "valid.txt, line 2: the word 'cow' does not"),
        ({"test": "cow cow hen\n"}, "test.txt, line 1: the word 'cow' and 1 other word of the"),
        ({"test": "dog\n\nhen cow pig"}, "line 3: the word 'hen' and 2 other words of the file do"),
    ],
)
def test_bad_text_is_named_by_file_and_line(tmp_path, monkeypatch, replaced, wanted, piece):
    monkeypatch.setattr(text, "_PIECE", piece)
    with pytest.raises(CorpusError) as error:
        load(str(write(tmp_path / "own", **replaced)))
    assert wanted in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_unseen_words_are_advised_to_become_unk(tmp_path):
    with pytest.raises(CorpusError, match="write <unk> for such words"):
        load(str(write(tmp_path / "own", test="cow\n")))


def test_folder_that_does_not_exist():
    with pytest.raises(CorpusError, match=r"no folder 'pbt'; choose ptb, wikitext-2, embedded or"):
        load("pbt")


def test_split_that_is_missing(tmp_path):
    folder = write(tmp_path / "own")
    (folder / "valid.txt").unlink()
    with pytest.raises(CorpusError, match=r"own has no valid text; add it as valid\.txt"):
        load(str(folder))


def test_split_that_is_there_twice(tmp_path):
    folder = write(tmp_path / "own")
    (folder / "old-train.tokens").write_text("a\n")
    with pytest.raises(CorpusError, match=r"has old-train\.tokens and train\.txt for the train"):
        load(str(folder))


def test_split_that_is_a_folder(tmp_path):
    folder = write(tmp_path / "own")
    (folder / "test.txt").unlink()
    (folder / "test.txt").mkdir()
    with pytest.raises(CorpusError, match=r"test\.txt cannot be read"):
        load(str(folder))


@pytest.mark.parametrize("pattern", ["wiki.{split}.tokens", "latest {split}-set.txt", "{split}"])
def test_names_of_own_files(tmp_path, pattern):
    suffix = "" if "." in pattern else "ing.txt"
    folder = write(tmp_path / "own", pattern + suffix)
    for other in (".train.txt", "train.md", "contrain.txt", "vocabulary.txt"):
        (folder / other).write_text("another\n")
    corpus = load(str(folder))
    assert spelled(corpus, "test") == ["cat", "saw", "dog", "<eos>", "the", "ran", "<eos>"]
    assert corpus.title == "own"


# Shortened corpora and streams


def test_head_keeps_the_vocabulary_and_says_so(tmp_path):
    corpus = load(str(write(tmp_path / "own", train=TEXTS["train"] * 1000)))
    short = corpus.head(train=2500, test=2)
    assert short.title == "own, first 2 500 training and 2 test tokens"
    assert short.words == corpus.words
    assert short.checksums == corpus.checksums
    np.testing.assert_array_equal(short.train, corpus.train[:2500])
    np.testing.assert_array_equal(short.valid, corpus.valid)
    np.testing.assert_array_equal(short.test, corpus.test[:2])
    listed = corpus.head(train=5, valid=4, test=3).title
    assert listed == "own, first 5 training, 4 validation and 3 test tokens"


def test_head_that_takes_all_is_no_other_corpus(tmp_path):
    corpus = load(str(write(tmp_path / "own")))
    assert corpus.head(valid=len(corpus.valid), test=10**9).title == "own"
    with pytest.raises(ValueError, match="train must keep at least one token, not 0"):
        corpus.head(train=0)


@given(st.integers(1, 20), st.integers(0, 200))
def test_streams_are_continuous_text(number, length):
    tokens = np.arange(length)
    if length // number < 2:
        with pytest.raises(CorpusError, match=f"{length} tokens is too short .* {number} streams"):
            streams(tokens, number)
        return
    columns = streams(tokens, number)
    assert columns.shape == (length // number, number)
    np.testing.assert_array_equal(columns.T.ravel(), tokens[: columns.size])


# Known corpora: where they are looked for, and what they must be


@pytest.fixture
def tiny(monkeypatch) -> Known:
    """A published corpus that has no mirror."""
    monkeypatch.setitem(KNOWN, "tiny", known())
    return KNOWN["tiny"]


def test_known_corpus_from_the_variable_then_from_the_project(tiny, project, tmp_path, monkeypatch):
    with pytest.raises(CorpusError, match=r"Tiny is not in .*project/data/tiny and cannot be"):
        load("tiny")
    write(project / "data/tiny", tiny.file)
    expected = spelled(load("tiny"), "valid")
    assert load("tiny").title == "Tiny"

    monkeypatch.setenv("PAPERLIB_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(CorpusError, match=r"PAPERLIB_DATA names .*elsewhere, which is no folder"):
        load("tiny")
    write(tmp_path / "elsewhere/other", tiny.file)
    assert spelled(load("tiny"), "valid") == expected
    write(tmp_path / "elsewhere/tiny", tiny.file)
    shutil.rmtree(project / "data")
    assert spelled(load("tiny"), "valid") == expected


def test_known_corpus_with_another_text(tiny, project):
    write(project / "data/tiny", tiny.file, valid="the dog\n")
    wanted = rf"tiny\.valid\.txt is not the valid text of Tiny: .* not {tiny.sha256['valid'][:12]}"
    for instead in (False, True):
        with pytest.raises(CorpusError, match=wanted):
            load("tiny", embedded_instead=instead)


def test_known_corpus_without_a_split(tiny, project):
    write(project / "data/tiny", tiny.file)
    (project / "data/tiny/tiny.test.txt").unlink()
    with pytest.raises(CorpusError, match=r"tiny\.test\.txt is missing"):
        load("tiny", embedded_instead=True)


SIZES = {
    "ptb": ((929_589, 73_760, 82_430), 10_000),
    "wikitext-2": ((2_088_628, 217_646, 245_569), 33_278),
}


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name, monkeypatch):
    if not DATA or not (Path(DATA).expanduser() / name).is_dir():
        pytest.skip(f"the variable PAPERLIB_DATA names no folder with {name}/")
    monkeypatch.setenv("PAPERLIB_DATA", DATA)
    corpus = load(name)
    tokens, types = SIZES[name]
    assert tuple(len(getattr(corpus, split)) for split in SPLITS) == tokens
    assert corpus.n_words == len(set(corpus.words)) == types
    np.testing.assert_array_equal(np.unique(corpus.train), np.arange(types))
    assert "<unk>" in corpus.words


# The embedded default


def test_embedded_default_is_a_corpus_of_its_own():
    corpus = load("embedded")
    total = sum(len(getattr(corpus, split)) for split in SPLITS)
    assert 40_000 < total < 120_000
    assert 1_000 < corpus.n_words < 4_000
    for split, share in zip(SPLITS, (0.8, 0.1, 0.1), strict=True):
        assert abs(len(getattr(corpus, split)) / total - share) < 0.01
    assert Counter(corpus.train.tolist()).most_common()[-1][1] >= 2  # rarer words are <unk>
    assert corpus.title.startswith("language reference of Python 3.")
    assert load("embedded").checksums == corpus.checksums


def test_embedded_splits_share_no_long_sentence():
    lines = {
        split: {line for line in own.data.splitlines() if line.count(b" ") >= 20}
        for split, own in embedded.texts().items()
    }
    assert all(len(found) > 30 for found in lines.values())
    assert not lines["train"] & (lines["valid"] | lines["test"])


def test_embedded_default_stands_in_only_if_asked_and_says_so(tiny, capsys):
    corpus = load("tiny", embedded_instead=True)
    assert corpus.name == "embedded"
    assert corpus.title == embedded.TITLE
    said = capsys.readouterr().err
    assert said.startswith("Tiny is not in ")
    assert said.endswith(f"the {embedded.TITLE} stands in for it.\n")


# The cache


@pytest.fixture
def encodings(monkeypatch) -> list:
    """Grows by one with each encoding that is not taken from the cache."""
    done = []
    monkeypatch.setattr(cache, "encode", lambda texts: done.append(texts) or encode(texts))
    return done


def same(one: Corpus, other: Corpus) -> bool:
    """Whether two corpora have the same words and tokens."""
    return one.words == other.words and all(
        np.array_equal(getattr(one, split), getattr(other, split)) for split in SPLITS
    )


def test_second_time_from_the_cache(tmp_path, encodings):
    folder = write(tmp_path / "own", train=TEXTS["train"] + "größe Σ\n")
    first, second = load(str(folder)), load(str(folder))
    assert len(encodings) == 1
    assert same(first, second)
    assert second.train.dtype == np.int32


def test_changed_text_is_noticed(tmp_path, encodings):
    folder = write(tmp_path / "own")
    load(str(folder))
    before = (folder / "valid.txt").stat()
    write(folder, valid="the cat saw the dog\n")  # as long as it was
    os.utime(folder / "valid.txt", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert spelled(load(str(folder)), "valid") == ["the", "cat", "saw", "the", "dog", "<eos>"]
    assert len(encodings) == 2


def test_damaged_cache_is_built_again(tmp_path, encodings):
    folder = str(write(tmp_path / "own"))
    corpus = load(folder)
    (path,) = (tmp_path / "runs/corpora").iterdir()
    whole = path.read_bytes()
    flipped = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(len(whole))]
    for damaged in (b"", whole[:-1], whole[: len(whole) // 2], b"PK", *flipped[::7]):
        path.write_bytes(damaged)
        assert same(load(folder), corpus)
    assert len(encodings) > 100
    encodings.clear()
    path.write_bytes(whole)
    assert same(load(folder), corpus)
    assert not encodings


def test_cache_that_cannot_be_written_costs_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PAPERLIB_RUNS", str(tmp_path / "file"))
    assert load(str(write(tmp_path / "own"))).n_words == 6
