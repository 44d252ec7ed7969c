"""What the paper leaves open, on the synthetic language, where p is known (notebook 09).

The trainings are here; what is measured on them is in :mod:`paperlib.beyond_measures`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from torch import nn

from paperlib import settings, stages
from paperlib.evaluation import over_batches
from paperlib.models.readings import log_q
from paperlib.perturb import amount_for, lower_bias
from paperlib.settings import SecondTerm
from paperlib.stages import Trained
from paperlib.synthetic import MODELS, SyntheticStudy
from paperlib.tasks import FinetuningTask, Split
from paperlib.truth import TrueModel

ORACLE, TRAINED, NONE = "oracle", "trained", "none"
"""Where p̂ comes from: p itself, the profile's discriminator, or nowhere (cross-entropy alone)."""

PERTURBED = ("perturbed", "several", "frequent")
"""Perturbed models: at the paper's word, at several almost frequent words, at a frequent word."""

PAPERS_TERM = SecondTerm()
"""Eq. (12) as it stands."""


@dataclass(frozen=True)
class Variant:
    """One way to fine-tune; the paper's, on the perturbed model, by default."""

    p_hat: str | int = TRAINED
    """``ORACLE``, ``TRAINED``, ``NONE``, or a discriminator stopped after this many epochs."""
    term: SecondTerm = PAPERS_TERM
    of: str = "perturbed"
    """The model that it starts from: ``initial``, ``perturbed``, ``several`` or ``frequent``."""
    fast: bool = False
    """At ``fast_rate`` in place of the profile's rate."""

    @property
    def title(self) -> str:
        """For tables and progress bars."""
        sources = {
            ORACLE: "oracle",
            TRAINED: "discriminator",
            NONE: "cross-entropy alone",
        }
        epochs = f"{self.p_hat} epoch{'s' * (self.p_hat != 1)}"
        parts = [sources.get(self.p_hat, f"discriminator, stopped after {epochs}")]
        term = self.term
        if term.estimate == "sum":
            parts.append("exact sum")
        if term.normalised:
            parts.append("p̂ normalised")
        if term.largest_t is not None:
            parts.append(f"t ≤ {term.largest_t:g}")
        if term.weight != 1:
            parts.append(f"λ = {term.weight:g}")
        return ", ".join(parts)


class BeyondStudy(SyntheticStudy):
    """Section 3 with other discriminators, other second terms and other perturbations.

    Raises :class:`paperlib.settings.SettingsError` where the profile has no ``[synthetic.beyond]``.
    """

    def __init__(self, profile: settings.Synthetic, seed: int = 0):
        if profile.beyond is None:
            raise settings.SettingsError("not run in this profile: it has no [synthetic.beyond]")
        super().__init__(profile, seed)
        self.beyond = profile.beyond

    # Models

    def truth_in(self, split: Split) -> TrueModel:
        """p in all contexts of the sentences of ``split``."""
        return self._once(
            (TrueModel, split), lambda: TrueModel(self.language, split.train, split.valid)
        )

    def perturbed_words(self, of: str) -> list[int]:
        """Ids of the words whose bias is lowered in the model ``of``.

        *several* are spread evenly over the almost frequent words, *frequent* is the middle one of
        the frequent words.
        """
        if of == "several":
            words = self.classes.almost_frequent
            at = np.linspace(0, len(words) - 1, self.beyond.several).round().astype(int)
            return [int(word) for word in words[at]]
        return {
            "initial": [],
            "perturbed": [self.chosen],
            "frequent": [self.probed_words()["frequent"]],
        }[of]

    def start(self, of: str) -> nn.Module:
        """The model that fine-tuning starts from: q_0."""
        if of in ("several", "frequent"):
            return self._once((of,), lambda: self._lowered(of))
        return super().start(of)

    def stopped_discriminator(self, of: str, epochs: int) -> Trained:
        """The discriminator against the model ``of``, as it is after ``epochs`` epochs.

        The best weights would be those before the first step where no epoch is better than a guess.
        """
        training = self.settings.discriminator.model_copy(
            update={"max_epochs": epochs, "schedule": "plateau"}
        )
        return self._discriminator(of, training, last=True)

    def rate(self, variant: Variant) -> float:
        """Its learning rate in fine-tuning."""
        return self.beyond.fast_rate if variant.fast else self.settings.finetuning.learning_rate

    def p_hat_discriminator(self, variant: Variant) -> Trained | None:
        """The discriminator that the variant takes p̂ from; None where it takes none."""
        if variant.p_hat in (ORACLE, NONE):
            return None
        if variant.p_hat == TRAINED:
            return self.discriminator(variant.of)
        return self.stopped_discriminator(variant.of, variant.p_hat)

    def tuned(self, variant: Variant) -> Trained:
        """The variant's fine-tuned model."""
        rate = self.rate(variant)
        training = self.settings.finetuning.at_constant_rate(rate, self.beyond.epochs)
        title = f"{variant.title} ({variant.of}, rate {rate:g})"
        # These two are fine-tunings as the rest of section 3 has them, and may be there already.
        if variant.p_hat == NONE:
            return self._finetune(title, variant.of, "cross_entropy", training)
        if variant.p_hat == TRAINED and variant.term == PAPERS_TERM:
            return self._finetune(title, variant.of, "discriminator", training)
        key = self._key(variant.of) | {"second_term": variant.term.model_dump(mode="json")}
        discriminator = self.p_hat_discriminator(variant)
        if discriminator is None:
            key["language"] = self.settings.language.model_dump(mode="json")
        else:
            key["discriminator"] = discriminator.folder.name
        return stages.train(
            "beyond_finetuning",
            key,
            training,
            self._new_model(stream=0),
            lambda model: self.task(
                variant,
                stages.starting_from(self.start(variant.of), model),
                self.split,
                title=title,
                **self._options(training),
            ),
        )

    def task(
        self, variant: Variant, model: nn.Module, split: Split, *, title: str = "", **options
    ) -> FinetuningTask:
        """The task that fine-tunes ``model`` in the variant's way on the sentences of ``split``."""
        discriminator = self.p_hat_discriminator(variant)
        return FinetuningTask(
            title,
            model,
            split,
            q0=self.truth_in(split) if variant.p_hat == ORACLE else self.start(variant.of),
            discriminator=discriminator and discriminator.model,
            second_term=variant.term,
            read_frozen=self._read_once,
            **({"seed": self.seed} | options),
        )

    def test_log_q(self, model: str | Variant) -> np.ndarray:
        """``(N, T)`` log-probabilities of the test words, nats, before or after fine-tuning."""

        def read() -> np.ndarray:
            network = self.start(model) if isinstance(model, str) else self.tuned(model).model
            return self.log_q(network, self.test)

        return self._once(("test", model), read)

    # Variants

    def variants(self) -> dict[int, list[Variant]]:
        """The fine-tunings of each question; some belong to several."""
        found = (
            self.discriminator_variants(),
            self.estimate_variants(),
            self.term_variants(),
            self.repair_variants(),
        )
        return dict(zip(settings.QUESTIONS, found, strict=True))

    def discriminator_variants(self) -> list[Variant]:
        """Question 1: how good is the discriminator? Each at both rates."""
        sources = (NONE, *self.beyond.early, TRAINED, ORACLE)
        slow = [Variant(source) for source in sources]
        return slow + [Variant(source, fast=True) for source in (NONE, TRAINED, ORACLE)]

    def estimate_variants(self) -> list[Variant]:
        """Question 3: one sample or the exact sum?"""
        exact = SecondTerm(estimate="sum")
        terms = (PAPERS_TERM, exact)
        return [Variant(source, term) for source in (TRAINED, ORACLE) for term in terms]

    def term_variants(self) -> list[Variant]:
        """Question 4: changes of the second term."""
        terms = [
            PAPERS_TERM,
            SecondTerm(normalised=True),
            *(SecondTerm(largest_t=largest) for largest in self.beyond.largest_t),
            *(SecondTerm(weight=weight) for weight in self.beyond.weights),
        ]
        return [Variant(NONE), *(Variant(term=term) for term in terms)]

    def repair_variants(self) -> list[Variant]:
        """Question 5: other perturbations, each with a discriminator of the same few epochs, and
        with cross-entropy alone.
        """
        sources = (self.beyond.early[-1], NONE)
        return [Variant(source, of=of) for of in PERTURBED for source in sources]

    def pairs(self) -> dict[int, list[tuple[Variant, Variant]]]:
        """By question, the fine-tunings that are held against one another."""
        exact = SecondTerm(estimate="sum")
        sources = [(ORACLE, TRAINED), (TRAINED, NONE)]
        first = [
            (Variant(one, fast=fast), Variant(other, fast=fast))
            for fast in (False, True)
            for one, other in sources
        ]
        first += [(Variant(TRAINED), Variant(epochs)) for epochs in self.beyond.early]
        third = [(Variant(source, exact), Variant(source)) for source in (TRAINED, ORACLE)]
        third.append((Variant(TRAINED, exact), Variant(NONE)))
        fourth = [(other, Variant()) for other in self.term_variants() if other != Variant()]
        repairs = iter(self.repair_variants())
        return {1: first, 3: third, 4: fourth, 5: list(zip(repairs, repairs, strict=True))}

    def trainings(
        self, questions: Iterable[int] = settings.QUESTIONS
    ) -> Iterator[tuple[str, Trained]]:
        """All trainings of the notebook by name, each trained when it is reached."""
        for of in MODELS:
            yield f"{of}_ftd", self.finetuned(of)
        variants = self.variants()
        for variant in dict.fromkeys(one for number in questions for one in variants[number]):
            title = f"{variant.of}: {variant.title}, rate {self.rate(variant):g}"
            if (discriminator := self.p_hat_discriminator(variant)) is not None:
                yield f"discriminator of {title}", discriminator
            yield title, self.tuned(variant)

    # Parts

    def _lowered(self, of: str) -> nn.Module:
        """The initial model with the biases of some words lowered, one after the other."""
        model = self.initial.model
        for word in self.perturbed_words(of):
            log_probs = over_batches(
                model, self.split.valid, lambda logits, _, word=word: log_q(logits)[..., word]
            )
            amount = amount_for(log_probs.cpu().numpy(), self.settings.perturbation.probability)
            model = lower_bias(model, word, amount)
        return model

    def _key(self, of: str) -> dict:
        key = super()._key(of)
        if of in ("several", "frequent"):
            key["perturbation"] = self.settings.perturbation.model_dump(mode="json")
            key["words"] = self.perturbed_words(of)
        return key


def run_beyond(profile: settings.Profile, questions: Iterable[int] = settings.QUESTIONS) -> dict:
    """Train what notebook 09 reads, and say under which folder of ``runs/`` each lies."""
    study = BeyondStudy(profile.synthetic)
    trainings = {name: trained.address for name, trained in study.trainings(questions)}
    return {"profile": profile.name, "seed": study.seed, "trainings": trainings}
