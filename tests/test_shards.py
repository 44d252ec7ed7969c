"""Text of any size: against a plain loop over the words, and whatever may go wrong with files."""

import gzip
import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_folder import PLAIN, random_text, read, write_folder

from paperlib.cli import main
from paperlib.shards import documents, prepare, vocabulary, words
from paperlib.shards.documents import DamagedFile
from paperlib.shards.prepare import TextSettings
from paperlib.shards.words import END, UNKNOWN


@pytest.fixture(autouse=True)
def _own_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_RUNS", str(tmp_path / "runs"))


@pytest.fixture
def folder(tmp_path):
    folder = write_folder(tmp_path / "text")
    (folder / "below" / "notes.md").write_text("not text", encoding="utf-8")
    return folder


def by_a_plain_loop(options):
    """Vocabulary and ids of each split, from loops over documents, lines and words."""
    texts = [random_text(0, 200), random_text(1), random_text(2)]
    shares = (options.valid, options.test)
    split_documents = {"train": [], "valid": [], "test": []}
    for text in texts:
        for document in text.strip("\n").split("\n\n"):
            number = documents.split_of(document.encode(), options.seed, shares)
            split_documents[documents.SPLITS[number]].append(document)
    lines = {
        split: [[*line.split(), END] for document in some for line in document.split("\n")]
        for split, some in split_documents.items()
    }
    counts = Counter(word for line in lines["train"] for word in line)
    del counts[END]
    frequent = sorted(counts, key=lambda word: (-counts[word], word))
    listed = [END, UNKNOWN, *frequent[: options.vocabulary - 2]]
    ids = {word: number for number, word in enumerate(listed)}
    return listed, {
        split: [ids.get(word, 1) for line in some for word in line] for split, some in lines.items()
    }


def test_words_and_ids_are_those_of_a_plain_loop(folder):
    options = TextSettings(**PLAIN, valid=0.1, test=0.2)
    shards = prepare.prepare(folder, options)
    listed, expected = by_a_plain_loop(options)
    assert shards.words() == listed
    for split, ids in expected.items():
        np.testing.assert_array_equal(read(shards, split), ids)
        assert shards.tokens(split) == len(ids)
    assert len(shards.parts("train")) > 3
    assert isinstance(shards.parts("train")[0].ids(), np.memmap)


def test_shards_are_the_same_bytes_whatever_the_processes(folder, tmp_path, monkeypatch):
    made = []
    for processes in (1, 4):
        monkeypatch.setenv("PAPERLIB_RUNS", str(tmp_path / f"runs{processes}"))
        shards = prepare.prepare(folder, TextSettings(**PLAIN), processes)
        files = sorted(
            path for path in Path(shards.address).rglob("*") if path.suffix in (".npy", ".txt")
        )
        made.append({str(p.relative_to(shards.address)): p.read_bytes() for p in sorted(files)})
    assert made[0] == made[1]
    part = shards.parts("train")[0]
    assert part.sha256 == hashlib.sha256(part.ids().tobytes()).hexdigest()


def test_an_interrupted_run_goes_on_to_the_same_shards(folder, tmp_path, monkeypatch):
    whole = prepare.prepare(folder, TextSettings(**PLAIN), 1)
    monkeypatch.setenv("PAPERLIB_RUNS", str(tmp_path / "again"))
    for place in ("save_counts", "save_array"):
        original, calls = getattr(prepare, place), []

        def fails_at_the_third(*arguments, original=original, calls=calls):
            calls.append(arguments)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return original(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(prepare, place, fails_at_the_third)
            with pytest.raises(KeyboardInterrupt):
                prepare.prepare(folder, TextSettings(**PLAIN), 1)
    resumed = prepare.prepare(folder, TextSettings(**PLAIN), 1)
    assert not list(Path(resumed.address).rglob("*.tmp"))
    assert resumed.words() == whole.words()
    for split in documents.SPLITS:
        assert [part.sha256 for part in resumed.parts(split)] == [
            part.sha256 for part in whole.parts(split)
        ]


def test_what_is_made_is_found_again_until_a_file_changes(folder, monkeypatch):
    first = prepare.prepare(folder, TextSettings(**PLAIN))
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_Preparation", None)
        assert prepare.prepare(folder, TextSettings(**PLAIN)).address == first.address
    with (folder / "a.txt").open("a", encoding="utf-8") as file:
        file.write("\n\none more\n")
    assert prepare.prepare(folder, TextSettings(**PLAIN)).address != first.address


def test_small_files_share_a_part_and_a_large_compressed_one_becomes_many(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    lines = random_text(3, 400).split("\n\n")
    for number, line in enumerate(lines):
        (folder / f"{number:04}.txt").write_text(line + "\n", encoding="utf-8")
    options = TextSettings(tokens="whitespace", vocabulary=60, part_bytes=4000, valid=0, test=0)
    small = prepare.prepare(folder, options)
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert len(small.parts("train")) == pytest.approx(size / 4000, rel=0.2)

    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "all.gz").write_bytes(gzip.compress("\n\n".join(lines).encode()))
    large = prepare.prepare(packed, options)
    np.testing.assert_array_equal(read(large, "train"), read(small, "train"))
    tokens = [part.tokens for part in large.parts("train")]
    assert len(tokens) == pytest.approx(size / 4000, rel=0.2)
    usual = np.median(tokens)
    assert 0.5 * usual <= min(tokens) <= max(tokens) <= 1.6 * usual


@given(st.lists(st.integers(0, 70), min_size=1, max_size=12), st.integers(4, 30))
@settings(max_examples=60)
def test_groups_are_all_the_text_and_a_file_that_was_cut_shares_none(tmp_path_factory, sizes, size):
    folder = tmp_path_factory.mktemp("groups")
    paths = [folder / f"{number:02}.txt" for number in range(len(sizes))]
    for path, length in zip(paths, sizes, strict=True):
        path.write_bytes(b"a b\n" * (length // 4))
    some = documents.segments(paths, size)
    found = documents.groups(some, size)
    assert [segment for group in found for segment in group] == some
    cut = {segment.path for segment in some if segment.stop is not None}
    assert all(len(group) == 1 for group in found if cut & {segment.path for segment in group})
    for group in found:  # small files come together to about the size
        lengths = [segment.path.stat().st_size for segment in group]
        assert len(group) == 1 or sum(lengths) <= size + lengths[-1] / 2


def test_shards_of_other_groups_are_not_gone_on_with(folder, monkeypatch):
    first = prepare.prepare(folder, TextSettings(**PLAIN), 1)
    monkeypatch.setattr(prepare, "VERSION", prepare.VERSION - 1)
    assert prepare.prepare(folder, TextSettings(**PLAIN), 1).address != first.address


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=40),
    st.integers(10, 50),
)
def test_parts_are_cut_without_loss_and_none_is_small(sizes, size):
    cutter, start, parts = prepare.Cutter(size), 0, []
    for length in sizes:  # a byte a token
        ids = np.arange(start, start + length, dtype=np.uint32)
        parts += cutter.add(ids, length)
        start += length
    parts.append(cutter.rest())
    np.testing.assert_array_equal(np.concatenate(parts), np.arange(start))
    if len(parts) > 1:
        assert all(size / 2 <= len(part) <= 1.5 * size for part in parts)


def test_folders_without_text_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        prepare.prepare(tmp_path / "none", TextSettings())
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has no text: no file in it ends with \.txt, \.gz"):
        prepare.prepare(tmp_path / "empty", TextSettings())
    (tmp_path / "empty" / "a.txt").write_text("\n\n", encoding="utf-8")
    with pytest.raises(ValueError, match="have no words"):
        prepare.prepare(tmp_path / "empty", TextSettings())


def test_signs_are_words_of_their_own():
    text = ["Don't stop, co-op: “naïve” Ünïcode…".encode(), b"2 + 2\n\n"]
    found = words.words_of(text, "words").to_pylist()
    assert " ".join(found) == "Don't stop , co-op : “ naïve ” Ünïcode … <eos> 2 + 2 <eos>"
    assert words.words_of([b"<unk> a_b"], "words").to_pylist() == ["<unk>", "a_b", END]
    assert words.words_of([b"a,b c"], "whitespace").to_pylist() == ["a,b", "c", END]


@given(
    st.lists(st.text(alphabet="ab é\n", max_size=12), min_size=1, max_size=30),
    st.integers(1, 40),
)
@settings(max_examples=60)
def test_documents_do_not_depend_on_where_a_file_is_cut_in_pieces(tmp_path_factory, made, piece):
    path = tmp_path_factory.mktemp("cut") / "a.txt"
    text = "\n\n".join(made).encode()
    path.write_bytes(text)
    lines = [line for line in text.split(b"\n") if line.strip()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "PIECE", piece)
        found = [
            document
            for segment in documents.segments([path], 25)
            for some in documents.pieces(segment)
            for document in some
        ]
    words_found = b" ".join(found).split()
    assert words_found == b" ".join(lines).split()


def test_no_word_has_a_space_in_it_however_the_text_ends():
    for number in range(300):
        text = "a b" + " c" * (number % 40) + "\n" * (number % 3) + " " * (number % 5)
        found = words.words_of([text.encode()], "whitespace").to_pylist()
        assert [word for word in found if word != END] == text.split()
        assert found[-1] == END


def test_lines_of_spaces_are_empty_and_line_ends_may_be_those_of_windows(tmp_path):
    texts = (b"a b\n \n c\nd \n", b"a b\r\n\r\n\t\r\nc\r\nd\r\n")
    for number, text in enumerate(texts):
        path = tmp_path / f"{number}.txt"
        path.write_bytes(text)
        found = [one for some in documents.pieces(documents.Segment(path)) for one in some]
        assert [document.split() for document in found] == [[b"a", b"b"], [b"c", b"d"]]
        lines = words.words_of(found, "whitespace").to_pylist()
        assert lines == ["a", "b", END, "c", END, "d", END]


@pytest.mark.parametrize("tokens", ["words", "whitespace"])
def test_a_line_of_any_white_signs_is_no_line(tokens):
    text = "\u00a0\na\n\u2003\u00a0\n \nb\n\u00a0".encode()
    assert words.words_of([text], tokens).to_pylist() == ["a", END, "b", END]


def test_splits_have_their_shares_and_depend_on_the_seed():
    made = [f"document {k}".encode() for k in range(20_000)]
    splits = np.array([documents.split_of(document, 1, (0.1, 0.2)) for document in made])
    shares = np.bincount(splits, minlength=3) / len(made)
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.01)
    others = np.array([documents.split_of(document, 2, (0.1, 0.2)) for document in made])
    assert np.mean(splits == others) == pytest.approx(0.7**2 + 0.1**2 + 0.2**2, abs=0.015)


def test_the_most_frequent_words_of_many_drafts_however_they_are_merged(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    drawn = [[f"w{k}" for k in rng.zipf(1.3, 400) if k < 500] for _ in range(70)]
    files = []
    for number, some in enumerate(drawn):
        files.append(tmp_path / f"{number}.arrow")
        counts = Counter(some)
        table = vocabulary.counts_of(
            pa.array([*counts, "none"], pa.large_string()), np.array([*counts.values(), 0])
        )
        vocabulary.save_counts(files[-1], table)
    counts = Counter(word for some in drawn for word in some)
    expected = sorted(counts, key=lambda word: (-counts[word], word))
    monkeypatch.setattr(vocabulary, "MOST", 256)
    partitions = vocabulary.FIRST
    for level in range(4):
        assert vocabulary.most_frequent(files, 50, partitions) == expected[:50]
        assert vocabulary.most_frequent(files, 10_000, partitions) == expected
        merged = [tmp_path / f"{level}-{start}" for start in range(0, len(files), 4)]
        for number, path in enumerate(merged):
            vocabulary.merge(files[4 * number : 4 * number + 4], path, partitions)
        files, partitions = merged, vocabulary.more(partitions)
    assert len(files) == 1
    assert partitions == vocabulary.MOST


def test_many_drafts_are_merged_to_the_same_shards(folder, tmp_path, monkeypatch):
    whole = prepare.prepare(folder, TextSettings(**PLAIN), 1)
    monkeypatch.setenv("PAPERLIB_RUNS", str(tmp_path / "again"))
    monkeypatch.setattr(prepare, "FAN_IN", 2)
    merged = []
    monkeypatch.setattr(prepare, "merge", lambda *job: merged.append(job) or vocabulary.merge(*job))
    again = prepare.prepare(folder, TextSettings(**PLAIN), 1)
    assert len(merged) > 4
    assert again.words() == whole.words()
    assert [p.sha256 for p in again.parts("train")] == [p.sha256 for p in whole.parts("train")]


def test_a_byte_order_mark_is_no_part_of_the_first_word(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone two\n")
    assert [one for some in documents.pieces(documents.Segment(path)) for one in some] == [
        b"one two"
    ]
    path.write_bytes(b"\xef\xbb\xbfone \xff\n")
    with pytest.raises(DamagedFile, match="at byte 7 of its text"):
        list(documents.pieces(documents.Segment(path)))


def test_linked_folders_are_read_once(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("text", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    for name in ("one", "two"):
        (tmp_path / "folder" / name).symlink_to(tmp_path / "real")
    (tmp_path / "real" / "round").symlink_to(tmp_path / "folder")
    assert documents.text_files(tmp_path / "folder") == [tmp_path / "folder" / "one" / "a.txt"]


@pytest.mark.parametrize(
    ("option", "value"),
    [("--part-bytes", "0"), ("--valid", "1.5"), ("--test", "-0.1"), ("--seed", str(2**64))],
)
def test_options_out_of_range_are_named_as_they_were_given(option, value, folder, capsys):
    assert main(["shards", str(folder), option, value]) == 2
    assert capsys.readouterr().err.startswith(f"{option}: ")


def test_shares_that_leave_nothing_to_train_on_are_refused():
    with pytest.raises(ValueError, match="leave nothing to train on"):
        TextSettings(valid=0.5, test=0.5)


def test_the_command_refuses_text_of_which_nothing_is_left_to_validate_on(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("a b c d\ne f g\n", encoding="utf-8")
    assert main(["shards", str(tmp_path)]) == 2
    assert "the valid split is empty: documents end" in capsys.readouterr().err
    assert main(["shards", str(tmp_path), "--valid", "0.6", "--test", "0.6"]) == 2
    assert capsys.readouterr().err.startswith("the shares ")


def test_the_command_says_what_it_made(folder, capsys):
    options = ["--tokens", "whitespace", "--valid", "0.2", "--test", "0.1", "--vocabulary", "60"]
    assert main(["shards", str(folder), *options]) == 0
    shown = capsys.readouterr().out
    made = prepare.prepare(
        folder, TextSettings(tokens="whitespace", vocabulary=60, valid=0.2, test=0.1)
    )
    assert f"valid: {made.tokens('valid')} tokens in 1 parts" in shown
    assert made.tokens("train") > 2 * made.tokens("valid") > made.tokens("test")
