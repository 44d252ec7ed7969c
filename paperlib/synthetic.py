"""The study of section 3, one seed: every step of it is a method that trains or finds its result.

The seed decides what differs from one run of the experiment to the next: the sentences, the initial
weights and the order of the batches. The language itself is drawn by a seed of its own.
"""

from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np
import torch
from torch import nn

from paperlib import hardware, settings, stages
from paperlib.checkpoints import checksum
from paperlib.estimates import resampled_sums
from paperlib.evaluation import FrequencyClasses, over_batches, table1_from_sums, table1_sums
from paperlib.losses import log_p_hat
from paperlib.models import LSTM
from paperlib.models.readings import log_q, log_q_of
from paperlib.perturb import amount_for, choose_word, lower_bias
from paperlib.remembered import Remembered
from paperlib.stages import Trained
from paperlib.tasks import DiscriminatorTask, FinetuningTask, LanguageModelTask, Probe, Split
from paperlib.training import TrainingError
from paperlib.trigram import TrigramLanguage

MODELS = ("initial", "perturbed")
"""The two models that section 3 fine-tunes."""


class SyntheticStudy:
    """Section 3 for one seed. Words are numbered 1…V in ``paperlib.trigram``, ids 0…V−1 here."""

    def __init__(self, profile: settings.Synthetic, seed: int):
        self.settings = profile
        self.seed = seed
        self.device = hardware.device()
        self.language = TrigramLanguage(**profile.language.model_dump())
        self._once = Remembered()

    # Data

    def sentences(self, split: str) -> np.ndarray:
        """``(N, T)`` word ids of ``train``, ``valid`` or ``test``."""
        sizes = self.settings.sentences
        stream = ("train", "valid", "test").index(split)
        numbers = self.language.sample(
            getattr(sizes, split), length=sizes.length, seed=(self.seed, stream)
        )
        return numbers - 1

    @cached_property
    def split(self) -> Split:
        """Training and validation sentences on the device."""
        return Split(*(self._on_device(self.sentences(name)) for name in ("train", "valid")))

    @cached_property
    def test(self) -> np.ndarray:
        """``(N, T)`` word ids of the test sentences."""
        return self.sentences("test")

    @cached_property
    def test_log_p(self) -> np.ndarray:
        """``(N, T)`` true log-probabilities of the test words, nats."""
        return self.language.log_prob(self.test + 1)

    @cached_property
    def classes(self) -> FrequencyClasses:
        """Frequent, almost frequent and rare words, by the training sentences."""
        sizes = self.settings.classes
        return FrequencyClasses.of(
            self.split.train.cpu().numpy(),
            self.language.n_words,
            sizes.frequent,
            sizes.almost_frequent,
        )

    @cached_property
    def chosen(self) -> int:
        """Id of the chosen word."""
        frequency = self.settings.perturbation.frequency
        return choose_word(self.classes.counts, self.classes.almost_frequent, frequency)

    # Models

    @cached_property
    def initial(self) -> Trained:
        """The initial model: cross-entropy, by the schedule that reaches Table 1."""
        return self._language_model(self.settings.language_model)

    @cached_property
    def literal(self) -> Trained:
        """The same model by a literal reading of the appendix's schedule, for comparison."""
        return self._language_model(self.settings.literal)

    @cached_property
    def perturbed(self) -> nn.Module:
        """The perturbed model: the chosen word's output bias lowered."""
        model = self.initial.model
        log_probs = over_batches(model, self.split.valid, self.log_q_of_chosen).cpu().numpy()
        amount = amount_for(log_probs, self.settings.perturbation.probability)
        return lower_bias(model, self.chosen, amount)

    def start(self, of: str) -> nn.Module:
        """The model that fine-tuning starts from, ``initial`` or ``perturbed``: q_0."""
        return self.initial.model if of == "initial" else self.perturbed

    def discriminator(self, of: str, rate: float | None = None) -> Trained:
        """The discriminator between the data and the model ``of``, trained from scratch.

        ``rate`` is another learning rate than the profile's.
        """
        return self._discriminator(of, _at_rate(self.settings.discriminator, rate))

    def _discriminator(
        self, of: str, training: settings.SentenceTraining, *, last: bool = False
    ) -> Trained:
        return self._once(
            (of, training, last),
            lambda: stages.train(
                "discriminator",
                self._key(of),
                training,
                self._new_model(stream=1),
                lambda model: DiscriminatorTask(
                    f"discriminator ({of})",
                    model,
                    self.split,
                    **self._options(training),
                    q0=self.start(of),
                ),
                last=last,
            ),
        )

    def finetuned(self, of: str, rate: float | None = None) -> Trained:
        """The model ``of`` fine-tuned with its discriminator, as in Table 1.

        ``rate`` is another learning rate than the profile's.
        """
        training = _at_rate(self.settings.finetuning, rate)
        return self._finetune(f"fine-tuning ({of})", of, "discriminator", training)

    def curve(self, curve: settings.Curve) -> Trained:
        """One fine-tuning run of the perturbed model for Figures 1 and 2, at a constant rate."""
        training = self.settings.finetuning.at_constant_rate(curve.learning_rate, curve.epochs)
        title = f"{curve.loss}, learning rate {curve.learning_rate:g}"
        return self._finetune(title, "perturbed", curve.loss, training)

    def search(self) -> dict[str, dict[float, Trained]]:
        """Trainings on the perturbed model by kind and learning rate, the profile's own included.

        Nothing of a kind where the profile tries no other rate.
        """
        own = self.settings
        rates = {
            "discriminator": (own.discriminator.learning_rate, *own.search.discriminator),
            "finetuning": (own.finetuning.learning_rate, *own.search.finetuning),
        }
        train = {"discriminator": self.discriminator, "finetuning": self.finetuned}
        return {
            kind: {rate: train[kind]("perturbed", rate) for rate in sorted(tried)}
            for kind, tried in rates.items()
            if len(tried) > 1
        }

    # Measures

    @cached_property
    def table1_sums(self) -> dict[str, np.ndarray]:
        """Sums over each test sentence by model: see :func:`paperlib.evaluation.table1_sums`."""
        models = {
            "initial": lambda: self.initial.model,
            "initial_ftd": lambda: self.finetuned("initial").model,
            "perturbed": lambda: self.perturbed,
            "perturbed_ftd": lambda: self.finetuned("perturbed").model,
        }
        log_probs = {"true": self.test_log_p} | {
            name: self.log_q(model(), self.test) for name, model in models.items()
        }
        return {name: self._table1_sums(log_q) for name, log_q in log_probs.items()}

    def _table1_sums(self, log_q: np.ndarray) -> np.ndarray:
        return table1_sums(log_q, self.test_log_p, self.test, self.classes, self.chosen)

    def table1_of(self, model: nn.Module) -> dict[str, float]:
        """A row of Table 1 for any model."""
        row = table1_from_sums(self._table1_sums(self.log_q(model, self.test)).sum(axis=0))
        return {column: float(value) for column, value in row.items()}

    def table1(self) -> dict[str, dict[str, float]]:
        """Rows of Table 1 by model name, measured on the test sentences."""
        return {
            name: {column: float(v) for column, v in table1_from_sums(sums.sum(axis=0)).items()}
            for name, sums in self.table1_sums.items()
        }

    def resampled_table1(self) -> dict[str, dict[str, np.ndarray]]:
        """The same from test sentences drawn with replacement: an array over resamples a cell."""
        return {
            name: table1_from_sums(resampled_sums(sums)) for name, sums in self.table1_sums.items()
        }

    def log_q(self, model: nn.Module, ids: np.ndarray) -> np.ndarray:
        """``(N, T)`` float64: the model's log-probability of each word, nats."""
        values = over_batches(model, self._on_device(ids), log_q_of)
        return values.cpu().numpy().astype(np.float64)

    def log_q_of_chosen(self, logits: torch.Tensor, _words: torch.Tensor) -> torch.Tensor:
        """For :func:`paperlib.evaluation.over_batches`: the chosen word's log-probability, nats."""
        return log_q(logits)[..., self.chosen]

    def chosen_word_probability(self, sentences: int = 1000) -> dict[str, np.ndarray]:
        """Mean probability of the chosen word over the contexts of each of some test sentences.

        Under the perturbed model q_0, under p̂ (eq. 8), under the fine-tuned model and under p,
        ``(sentences,)`` each; their means are the paper's 1e-8, 1e-6 and 1e-3.
        """
        ids = self.test[:sentences]
        words = self._on_device(ids)
        q0, tuned = (
            over_batches(model, words, self.log_q_of_chosen)
            for model in (self.perturbed, self.finetuned("perturbed").model)
        )
        log_odds = over_batches(
            self.discriminator("perturbed").model, words, lambda logits, _: logits[..., self.chosen]
        )
        logs = {"q0": q0, "p_hat": log_p_hat(q0, log_odds), "finetuned": tuned}
        means = {name: v.double().exp().mean(dim=1).cpu().numpy() for name, v in logs.items()}
        return means | {"p": self._true_probability(ids, self.chosen).mean(axis=1)}

    # Figures 1 and 2

    def probed_words(self) -> dict[str, int]:
        """Ids of the words whose probability Figures 1 and 2 follow.

        Beside the chosen word, the middle one of the frequent and of the almost frequent words.
        """
        almost = self.classes.almost_frequent[self.classes.almost_frequent != self.chosen]
        middle = {"almost_frequent": almost, "frequent": self.classes.frequent}
        return {"chosen": self.chosen} | {
            name: int(words[len(words) // 2]) for name, words in middle.items()
        }

    @cached_property
    def probe(self) -> Probe:
        """Each probed word in one fixed context.

        Of the validation sentences' contexts of at least two words that are followed by the word,
        it is the one that gives it the median true probability: a typical context. Raises
        :class:`~paperlib.training.TrainingError` for a word without one.
        """
        valid = self.split.valid.cpu().numpy()
        log_p = self.language.log_prob(valid + 1)
        rows, positions = [], []
        for word in self.probed_words().values():
            row, position = np.nonzero(valid[:, 2:] == word)
            if len(row) == 0:
                raise TrainingError(
                    f"no validation sentence has word {word + 1} after two others, so Figures 1 "
                    "and 2 cannot follow it; raise sentences.valid in the profile"
                )
            order = np.argsort(log_p[row, position + 2], kind="stable")
            rows.append(row[order[len(order) // 2]])
            positions.append(position[order[len(order) // 2]] + 2)
        words = list(self.probed_words().values())
        return Probe(*map(self._on_device, (valid[rows], np.array(positions), np.array(words))))

    def probe_lines(self) -> dict[str, list[float]]:
        """True p, p̂ and q_0 of the probed words in their contexts, in the order of the probe."""
        prefixes, positions = self.probe.sentences.cpu().numpy(), self.probe.positions.tolist()
        words = self.probe.words.tolist()
        p = [
            self._true_probability(prefixes[k : k + 1], word)[0, positions[k]]
            for k, word in enumerate(words)
        ]
        with torch.no_grad():
            q0 = self.probe.log_probs(self.perturbed)
            odds = self.probe.log_odds(self.discriminator("perturbed").model)
        return {
            "p": [float(value) for value in p],
            "p_hat": log_p_hat(q0, odds).exp().tolist(),
            "q0": q0.exp().tolist(),
        }

    # Parts

    def trainings(self) -> Iterator[tuple[str, Trained]]:
        """All trainings of the study by name, each trained when it is reached."""
        yield "initial", self.initial
        if self.seed == 0:
            yield "literal", self.literal
            for kind, tried in self.search().items():
                for rate, trained in tried.items():
                    yield f"search_{kind}_{rate:g}", trained
        for of in MODELS:
            yield f"discriminator_{of}", self.discriminator(of)
            yield f"{of}_ftd", self.finetuned(of)
        for curve in self.settings.curves:
            yield f"curve_{curve.loss}_{curve.learning_rate:g}", self.curve(curve)

    def _language_model(self, training: settings.SentenceTraining) -> Trained:
        return stages.train(
            "language_model",
            self._data_key,
            training,
            self._new_model(stream=0),
            lambda model: LanguageModelTask(
                f"language model (loss per {training.loss_per})",
                model,
                self.split,
                **self._options(training),
            ),
        )

    def _finetune(
        self, title: str, of: str, loss: str, training: settings.SentenceTraining
    ) -> Trained:
        discriminator = self.discriminator(of) if loss == "discriminator" else None
        key = self._key(of) | {"loss": loss}
        if discriminator is not None:
            key["discriminator"] = discriminator.folder.name
        options = self._options(training)
        options["probe"] = self.probe if of == "perturbed" else None

        def make_task(model: nn.Module):
            model = stages.starting_from(self.start(of), model)
            if loss == "cross_entropy":
                return LanguageModelTask(title, model, self.split, **options)
            options["q0"] = self.start(of)
            options["discriminator"] = discriminator and discriminator.model
            options["read_frozen"] = self._read_once
            return FinetuningTask(title, model, self.split, **options)

        return stages.train("finetuning", key, training, self._new_model(stream=0), make_task)

    def _read_once(self, model: nn.Module, sentences: torch.Tensor, read: Callable) -> torch.Tensor:
        """Of models that no longer change: they are read in the same way by many fine-tunings."""
        return self._once((model, sentences, read), lambda: over_batches(model, sentences, read))

    def _options(self, training: settings.SentenceTraining) -> dict:
        return {
            "seed": self.seed,
            "loss_per": training.loss_per,
            "mixed": hardware.precision(training.precision) == "mixed",
        }

    def _new_model(self, stream: int) -> LSTM:
        generator = torch.Generator().manual_seed(2 * self.seed + stream)
        return LSTM(self.language.n_words, self.settings.model, generator).to(self.device)

    @cached_property
    def _data_key(self) -> dict:
        return {
            "seed": self.seed,
            "model": self.settings.model.model_dump(mode="json"),
            "train": checksum(self.split.train.cpu().numpy()),
            "valid": checksum(self.split.valid.cpu().numpy()),
        }

    def _key(self, of: str) -> dict:
        key = self._data_key | {"of": of, "initial": self.initial.folder.name}
        if of == "perturbed":
            key["perturbation"] = self.settings.perturbation.model_dump(mode="json")
            key["chosen"] = self.chosen
            if self.settings.classes != settings.ClassSizes():  # they say what is probed
                key["classes"] = self.settings.classes.model_dump()
        return key

    def _true_probability(self, ids: np.ndarray, word: int) -> np.ndarray:
        padded = np.pad(ids + 1, ((0, 0), (2, 0)))
        return self.language.next_word_probs(padded[:, :-2], padded[:, 1:-1])[..., word]

    def _on_device(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


def _at_rate(training: settings.SentenceTraining, rate: float | None) -> settings.SentenceTraining:
    return training if rate is None else training.model_copy(update={"learning_rate": rate})


def run_seed(profile: settings.Profile, seed: int) -> dict:
    """Train all of one seed's study, and say under which folder of ``runs/`` each result lies."""
    study = SyntheticStudy(profile.synthetic, seed)
    trainings = {name: trained.address for name, trained in study.trainings()}
    return {"profile": profile.name, "seed": seed, "trainings": trainings}
