"""The embedded default: the English text of Python's own language reference.

Every CPython has it as ``pydoc_data.topics``, so it needs neither files nor a network. It differs
a little between versions of Python; the title names the version, the checksums tell for sure.

- A topic is parted into blocks at empty lines. Headings, grammar, tables and interactive sessions
  are left out, and so are blocks that an earlier topic has already: topics contain one another,
  and the splits must not.
- A line is a sentence. Words are lower-cased, ``N`` stands for numbers, and the marks ``. , ; :
  ( ) ? !`` are words; other marks are dropped.
- Whole topics go to the splits, the largest first, each to the split that lacks most of its share
  of the tokens (80, 10 and 10 %).
- A word that the training text has once, or not at all, becomes ``<unk>``.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterator

from paperlib.corpora.text import SPLITS, UNK, CorpusError, Text

TITLE = f"language reference of Python {sys.version_info.major}.{sys.version_info.minor}"

_SHARES = dict(zip(SPLITS, (0.8, 0.1, 0.1), strict=True))
_RAREST = 2  # occurrences in the training text that earn a word its place in the vocabulary

_NO_PROSE = re.compile(r"::=|>>>|^[-=*~+|]{3,}|[-=*~]{5,}", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<=[.?!])\s+(?=[^\Wa-z]|[\"*(“])")
_WORD = re.compile(r"\b(?:e\.g\.|i\.e\.)|[^\W\d]\w*(?:'[^\W\d]+)?|\d+|[.,;:()?!]")


def texts() -> dict[str, Text]:
    """The three splits; :class:`CorpusError` where this Python comes without its reference."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise CorpusError(
            "this Python comes without pydoc_data, whose text is the embedded default; "
            "install Python's full standard library or name another corpus"
        ) from None
    sentences = _sentences_of(topics)
    split_of = _assign({topic: sum(map(len, found)) for topic, found in sentences.items()})
    parts = {
        split: [
            sentence
            for topic, found in sentences.items()
            if split_of[topic] == split
            for sentence in found
        ]
        for split in SPLITS
    }
    counts = Counter(word for sentence in parts["train"] for word in sentence)
    known = {word for word, count in counts.items() if count >= _RAREST}

    def line(sentence: list[str]) -> str:
        return " ".join(word if word in known else UNK for word in sentence) + "\n"

    return {
        split: Text(f"the {split} part of pydoc_data.topics", "".join(map(line, part)).encode())
        for split, part in parts.items()
    }


def _sentences_of(topics: dict[str, str]) -> dict[str, list[list[str]]]:
    """Sentences as words, by topic in alphabetical order."""
    seen: set[str] = set()
    return {topic: list(_sentences(topics[topic], seen)) for topic in sorted(topics)}


def _sentences(topic: str, seen: set[str]) -> Iterator[list[str]]:
    """Sentences of the blocks that are not ``seen`` yet, to which they are added."""
    for raw in re.split(r"\n\s*\n", topic):
        block = " ".join(raw.split())
        if block in seen or _NO_PROSE.search(raw):
            continue
        seen.add(block)
        for sentence in _SENTENCE_END.split(block):
            words = _WORD.findall(sentence.replace("’", "'").lower())
            if words:
                yield ["N" if word.isdigit() else word for word in words]


def _assign(sizes: dict[str, int]) -> dict[str, str]:
    """The split of each topic of these sizes."""
    lacking = {split: share * sum(sizes.values()) for split, share in _SHARES.items()}
    split_of = {}
    for topic in sorted(sizes, key=sizes.get, reverse=True):
        split_of[topic] = max(lacking, key=lacking.get)
        lacking[split_of[topic]] -= sizes[topic]
    return split_of
