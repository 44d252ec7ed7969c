"""Downloads of corpora, from servers on this machine: good, bad, slow and absent ones."""

import hashlib
import re
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from paperlib import paths
from paperlib.corpora import CorpusError, download, load
from paperlib.corpora.known import KNOWN, Known
from paperlib.corpora.text import SPLITS

TEXTS = {split: f"the {split} text\n" * 20_000 for split in SPLITS}
TRAIN, VALID, TEST = (text.encode() for text in TEXTS.values())
# Every split must know the words of the others.
GOOD = dict(zip(SPLITS, (TRAIN + VALID + TEST, VALID, TEST), strict=True))


class Server(ThreadingHTTPServer):
    """Serves ``texts`` by the names of the splits.

    It ``breaks`` off in the middle of one split, or ``stalls`` there, and answers only ``after``
    another server was asked for a text.
    """

    daemon_threads = True

    def __init__(self, texts: dict[str, bytes], breaks="", stalls="", after: "Server" = None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.texts, self.breaks, self.stalls, self.after = texts, breaks, stalls, after
        self.sent: list[str] = []
        self.asked, self.closing = threading.Event(), threading.Event()

    @property
    def mirror(self) -> str:
        """Where the splits are."""
        return f"http://127.0.0.1:{self.server_port}/{{split}}.txt"


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Server

    def do_HEAD(self):
        """Whether the text is there, and its size."""
        self._head()

    def do_GET(self):
        """The text."""
        split, text = self._head()
        if text is None:
            return
        self.server.sent.append(split)
        self.server.asked.set()
        if split in (self.server.breaks, self.server.stalls):
            self.wfile.write(text[: len(text) // 2])
            self.wfile.flush()
            if split == self.server.stalls:
                self.server.closing.wait()
        else:
            self.wfile.write(text)

    def _head(self) -> tuple[str, bytes | None]:
        if self.server.after is not None:
            self.server.after.asked.wait(timeout=10)
        split = self.path.removeprefix("/").removesuffix(".txt")
        text = self.server.texts.get(split)
        self.send_response(404 if text is None else 200)
        self.send_header("Content-Length", str(len(text or b"")))
        self.end_headers()
        return split, text

    def log_message(self, *_):
        """Nothing: the tests' output is for the tests."""


@contextmanager
def serving(texts: dict[str, bytes], **faults):
    """A server at work."""
    with Server(texts, **faults) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch) -> Path:
    """An empty project, and little patience."""
    monkeypatch.delenv("PAPERLIB_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(paths, "PROJECT", tmp_path / "project")
    monkeypatch.setattr(download, "ANSWER", 2.0)  # a busy machine may be late
    monkeypatch.setattr(download, "STALL", 1.0)
    return tmp_path / "project"


@pytest.fixture
def offered(monkeypatch):
    """Makes ``tiny`` a published corpus with these mirrors."""

    def offer(*mirrors: str):
        sha256 = {split: hashlib.sha256(text).hexdigest() for split, text in GOOD.items()}
        tiny = Known("Tiny", file="tiny.{split}.txt", sha256=sha256, mirrors=mirrors)
        monkeypatch.setitem(KNOWN, "tiny", tiny)

    return offer


@pytest.fixture
def absent() -> str:
    """A mirror that refuses connections."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    return f"http://127.0.0.1:{port}/{{split}}.txt"


@pytest.fixture
def silent():
    """A mirror that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/{{split}}.txt"


def left(project: Path) -> list[str]:
    """Files below ``data/``."""
    return sorted(
        str(path.relative_to(project / "data"))
        for path in (project / "data").rglob("*")
        if path.is_file()
    )


FILES = [f"tiny/tiny.{split}.txt" for split in ("test", "train", "valid")]
WHOLE = [f"tiny/{paths.DOWNLOADED}", *FILES]


def test_download_is_kept(project, offered, capsys):
    with serving(GOOD) as server:
        offered(server.mirror)
        corpus = load("tiny")
        assert load("tiny").checksums == corpus.checksums == KNOWN["tiny"].sha256
        assert server.sent == list(SPLITS)
    assert left(project) == WHOLE
    assert [path.name for path in (project / "data").iterdir()] == ["tiny"]
    assert len(corpus.valid) == 4 * 20_000
    assert "Tiny, train: 100%" in capsys.readouterr().err
    assert load("tiny").title == "Tiny"  # without the server


@pytest.mark.parametrize(
    ("texts", "fault", "sent"),
    [
        (GOOD | {"test": GOOD["test"].upper()}, {}, ["train", "valid", "test"]),
        (GOOD, {"breaks": "valid"}, ["train", "valid"]),
        (GOOD, {"stalls": "train"}, ["train"]),
    ],
    ids=["wrong", "broken off", "stalling"],
)
def test_next_mirror_where_one_is_bad(project, offered, texts, fault, sent):
    with serving(texts, **fault) as bad, serving(GOOD, after=bad) as good:
        offered(good.mirror, bad.mirror)
        assert load("tiny").n_words == 6
        assert bad.sent == sent
        assert good.sent == list(SPLITS)
    assert left(project) == WHOLE


def test_mirrors_that_do_not_answer_are_passed_over(project, offered, absent, silent):
    with serving({}) as empty, serving(GOOD) as good:
        offered(absent, silent, empty.mirror, good.mirror)
        assert load("tiny").n_words == 6
        assert not empty.sent
    assert left(project) == WHOLE


@pytest.mark.parametrize(
    ("texts", "fault", "wanted"),
    [
        (GOOD | {"test": b"another text\n"}, {}, r"\d: the text it sent has another SHA-256\)"),
        (GOOD, {"breaks": "test"}, r"\d: \w+\)"),
        (GOOD, {"stalls": "valid"}, r"\d: ConnectionError\)"),
        ({split: GOOD[split] for split in ("train", "valid")}, {}, r"\d: HTTPError\)"),
        ({}, {}, r"\(127\.0\.0\.1:\d+: it does not have the text\)"),
    ],
    ids=["wrong", "broken off", "stalling", "incomplete", "empty"],
)
def test_bad_download_leaves_nothing(project, offered, texts, fault, wanted):
    with serving(texts, **fault) as server:
        offered(server.mirror)
        with pytest.raises(CorpusError, match=wanted) as error:
            load("tiny")
    assert not (project / "data").exists() or not list((project / "data").iterdir())
    assert "put tiny.train.txt, tiny.valid.txt, tiny.test.txt into" in str(error.value)
    assert "\n" not in str(error.value)


def test_no_network(project, offered, absent, silent, capsys):
    offered(silent, absent)
    silent_and_absent = r"downloaded \(127.*: no answer within 2 s; 127.*: ConnectionError\)"
    with pytest.raises(CorpusError, match=silent_and_absent):
        load("tiny")
    assert load("tiny", embedded_instead=True).name == "embedded"
    assert "stands in for it" in capsys.readouterr().err
    assert not (project / "data").exists()


def test_disk_that_cannot_be_written(project, offered):
    project.mkdir()
    (project / "data").write_text("in the way")
    with serving(GOOD) as server:
        offered(server.mirror)
        with pytest.raises(CorpusError, match=r"cannot be downloaded \(127.*: File exists\)"):
            load("tiny")


def test_another_process_was_faster(project, offered, monkeypatch):
    rename = Path.rename

    def late(self, target):
        (target / "taken").mkdir(parents=True)
        for split, name in KNOWN["tiny"].files().items():
            (target / name).write_bytes(GOOD[split])
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    with serving(GOOD) as server:
        offered(server.mirror)
        assert load("tiny").n_words == 6
    assert left(project) == FILES


def test_no_network_is_noticed_within_ten_seconds():
    # The fixture's patience is not the real one.
    source = Path(download.__file__).read_text(encoding="utf-8")
    named = dict(re.findall(r"^(ANSWER|STALL) = ([\d.]+)$", source, re.MULTILINE))
    most = max(len(corpus.mirrors) for corpus in KNOWN.values())
    assert float(named["ANSWER"]) + most * float(named["STALL"]) <= 10


def test_published_mirrors_are_pinned():
    for name in ("ptb", "wikitext-2"):
        mirrors = KNOWN[name].mirrors
        assert len({mirror.split("/")[2] for mirror in mirrors}) >= 2
        for mirror in mirrors:
            assert mirror.startswith("https://")
            assert len({mirror.format(split=split) for split in SPLITS}) == 3
            assert any(len(part.split("@")[-1]) == 40 for part in mirror.split("/"))
