"""Reproducibility companion for *Fine-tuning of Language Models with Discriminator*.

Popov & Kudinov, 2018. The library is small on purpose and layered: a module imports only from
lower levels.

0. formulas, settings, folders: ``losses``, ``proposition1``, ``settings``, ``paths``, ``progress``
1. data and layers: ``trigram``
2. models: ``models``, ``perturb``
3. measuring and keeping: ``evaluation``, ``checkpoints``
4. the one training loop: ``training``
5. what is run and shown: ``stages``, ``synthetic``, ``reporting``, ``cli``
"""

__version__ = "0.1.0"
