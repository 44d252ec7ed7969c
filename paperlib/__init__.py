"""Reproducibility companion for *Fine-tuning of Language Models with Discriminator*.

Popov & Kudinov, 2018. The library is small on purpose and layered: a module imports only from
lower levels, or from its own without going in circles (``tests/test_layers.py`` enforces it).

0. formulas, settings, folders: ``losses``, ``proposition1``, ``network``, ``settings``,
   ``profile_files``, ``validated``, ``paths``, ``progress``, ``hardware``, ``distributed``,
   ``arguments``, ``threads``, ``lifetime``, ``files``, ``kept``, ``remembered``, ``captured``
1. data and layers: ``proposals``, ``trigram``, ``divergences``, ``estimates``,
   ``frequency_bins``
2. models: ``models``, ``perturb``, ``truth``
3. reading, measuring and keeping: ``corpora``, ``shards``, ``evaluation``, ``checkpoints``
4. the one training loop and what it trains for: ``averaging``, ``training``, ``tasks``,
   ``streams``, ``stream_text``, ``stream_training``, ``stream_tasks``, ``dynamic``
5. what is run and shown: ``stages``, ``synthetic``, ``text_study``, ``corpus_study``,
   ``large_study``, ``beyond``, ``beyond_comparisons``, ``beyond_measures``, ``beyond_words``,
   ``reporting``, ``notebooks``, ``launch``, ``processes``, ``jobs``, ``scaling``, ``options``,
   ``cli``
"""

__version__ = "0.1.0"
