"""Real text for language models: Penn Treebank, WikiText-2, an embedded default, one's own."""

from paperlib.corpora.corpus import Corpus, InOnePart, steps_of_streams, streams
from paperlib.corpora.sources import find, load
from paperlib.corpora.text import CorpusError

__all__ = ["Corpus", "CorpusError", "InOnePart", "find", "load", "steps_of_streams", "streams"]
