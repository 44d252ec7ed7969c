"""Text that cannot be read to its end, or at all: named, and fatal or left out."""

import os
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from text_folder import PLAIN, random_text, read, write_folder

from paperlib.cli import main
from paperlib.shards import prepare
from paperlib.shards.documents import DamagedFile, TextError
from paperlib.shards.prepare import TextSettings


@pytest.fixture(autouse=True)
def _own_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_RUNS", str(tmp_path / "runs"))


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "text")


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-30])


def garbled(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = bytes(40)
    path.write_bytes(bytes(content))


def no_utf8(path):
    path.write_bytes(path.read_bytes() + b"\n\nabc \xff\xfe\n")


DAMAGE = [
    ("below/b.gz", cut_off, "cannot be read to its end"),
    ("below/b.gz", garbled, "cannot be read to its end"),
    ("below/c.zst", cut_off, "cannot be read to its end"),
    ("a.txt", no_utf8, "is no UTF-8 at byte"),
]


@pytest.mark.parametrize(("name", "damage", "says"), DAMAGE)
def test_a_damaged_file_is_named_and_fatal_or_left_out(folder, name, damage, says):
    damage(folder / name)
    with pytest.raises(DamagedFile, match=f"{re.escape(name)} {says}") as raised:
        prepare.prepare(folder, TextSettings(**PLAIN))
    assert "\n" not in str(raised.value)

    shards = prepare.prepare(folder, TextSettings(**PLAIN, damaged="skip"))
    assert list(shards.left_out) == [name]
    (folder / name).unlink()
    without = prepare.prepare(folder, TextSettings(**PLAIN))
    assert shards.words() == without.words()
    np.testing.assert_array_equal(read(shards, "train"), read(without, "train"))


def test_a_byte_that_is_no_utf8_is_placed(folder):
    text = (folder / "a.txt").read_bytes()
    no_utf8(folder / "a.txt")
    with pytest.raises(DamagedFile, match=f"at byte {len(text) + 6} of its text"):
        prepare.prepare(folder, TextSettings(**PLAIN))


def test_a_damaged_small_file_leaves_its_neighbours(tmp_path, monkeypatch):
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.txt").write_text(random_text(number, 10), encoding="utf-8")
    no_utf8(folder / "3.txt")
    options = TextSettings(tokens="whitespace", vocabulary=60, damaged="skip", valid=0, test=0)
    with monkeypatch.context() as patch:  # what was found damaged is known after an interruption
        patch.setattr(prepare, "vocabulary_of", None)
        with pytest.raises(TypeError):
            prepare.prepare(folder, options)
    shards = prepare.prepare(folder, options)
    assert list(shards.left_out) == ["3.txt"]
    (folder / "3.txt").unlink()
    without = prepare.prepare(folder, options)
    assert shards.words() == without.words()
    np.testing.assert_array_equal(read(shards, "train"), read(without, "train"))


def test_a_damaged_record_of_an_interrupted_run_is_one_sentence(folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "vocabulary_of", None)
        with pytest.raises(TypeError):
            prepare.prepare(folder, TextSettings(**PLAIN), 1)
    (record, *_) = tmp_path.glob("runs/shards/*/counts/*.json")
    record.write_text("{", encoding="utf-8")
    with pytest.raises(TextError) as raised:
        prepare.prepare(folder, TextSettings(**PLAIN), 1)
    made = record.parents[1]
    assert str(raised.value) == (
        f"{record} cannot be read (JSONDecodeError); delete {made} to prepare the text again"
    )


def write_texts(folder, documents_of):
    """Text files by name, of so many documents."""
    folder.mkdir()
    for seed, (name, number) in enumerate(documents_of.items()):
        text = random_text(seed, number) if number else ""
        (folder / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize("sizes", [(10, 400, 10), (10, 400, 0), (0, 400, 400)])
def test_nothing_stays_of_a_long_damaged_file_between_others(sizes, tmp_path):
    """Only the last of the stretches that it is cut into is damaged."""
    folder = tmp_path / "text"
    write_texts(folder, dict(zip(("a.txt", "b.txt", "c.txt"), sizes, strict=True)))
    with (folder / "b.txt").open("ab") as file:
        file.write(b"\n\n" + b"alien " * 500 + b"\xff\n")
    options = TextSettings(**PLAIN | {"damaged": "skip"}, valid=0, test=0)
    shards = prepare.prepare(folder, options, 1)
    assert list(shards.left_out) == ["b.txt"]
    (folder / "b.txt").unlink()
    without = prepare.prepare(folder, options, 1)
    assert shards.words() == without.words()
    np.testing.assert_array_equal(read(shards, "train"), read(without, "train"))


NOBODY = 65534
"""A user to whom permissions apply; to the administrator they do not."""


@pytest.fixture
def everyones_folder(folder, monkeypatch):
    """The same text where all may read and write; pytest's own folders are the user's alone."""
    with tempfile.TemporaryDirectory() as elsewhere:
        os.chmod(elsewhere, 0o777)
        monkeypatch.setenv("PAPERLIB_RUNS", f"{elsewhere}/runs")
        yield Path(shutil.copytree(folder, Path(elsewhere, "text")))


@pytest.fixture
def closed(everyones_folder, request):
    """A part of it that may not be read, by its name and mode, and a user who may not."""
    name, mode = request.param
    path = everyones_folder / name
    before = path.stat().st_mode
    path.chmod(mode)
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    yield path
    os.seteuid(user)
    path.chmod(before)


@pytest.mark.parametrize(
    "closed",
    [("below", 0o000), ("below", 0o444), ("a.txt", 0), ("below/b.gz", 0)],
    indirect=True,
)
def test_what_may_not_be_read_is_named_and_fatal_or_left_out(closed, everyones_folder, capsys):
    command = ["shards", str(everyones_folder), "--processes", "1"]
    command += ["--valid", "0.3", "--test", "0.3"]
    assert main(command) == 2
    refused = capsys.readouterr().err
    assert refused.splitlines()[-1].startswith(str(closed))
    assert "Permission denied" in refused
    assert main([*command, "--damaged", "skip"]) == 0
    left_out = capsys.readouterr().err
    assert f"left out: {closed.relative_to(everyones_folder)}" in left_out
    assert "a.txt" in left_out or "below" in left_out
