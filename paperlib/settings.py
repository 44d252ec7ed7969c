"""Profiles: one declarative TOML file each, validated into frozen settings.

Unknown keys and values out of range are refused in one sentence, so a typing error never runs
silently with a default.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from paperlib import paths

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(gt=0, lt=1)]


class SettingsError(ValueError):
    """A profile is unknown or not valid; the message is one sentence for the user."""


class Settings(BaseModel):
    """Base of all settings: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Language(Settings):
    """The synthetic language (appendix A; see :class:`paperlib.trigram.TrigramLanguage`).

    Its ξ are drawn once, from ``seed``: the paper has one language, whatever the study's seed.
    """

    seed: Annotated[int, Field(ge=0)] = 0
    n_words: Count = 1000
    gamma: Positive = 0.75


class Sentences(Settings):
    """Numbers of sentences and words a sentence (appendix A)."""

    train: Count = 80_000
    valid: Count = 10_000
    test: Count = 10_000
    length: Count = 10


class FrequencyClasses(Settings):
    """How many words count as frequent, and how many of the next ones as almost frequent (§3)."""

    frequent: Count = 50
    almost_frequent: Count = 100


class Model(Settings):
    """LSTM language model and discriminator (appendix A)."""

    embedding: Count = 256
    hidden: Count = 256
    layers: Count = 2
    init_range: Positive = 0.1


class Training(Settings):
    """SGD with gradient clipping and decay on plateau, for every kind of training.

    The learning rate is multiplied by ``decay`` after ``patience`` epochs without improvement on
    the validation set, going back to the best weights; the plateau after ``max_decays`` decays
    ends the training, and so does ``max_epochs``.
    """

    learning_rate: Positive = 1.0
    batch_size: Count = 1024
    clip: Positive = 1.0
    loss_per: Literal["sentence", "word"] = "sentence"
    max_epochs: Count
    patience: Count = 3
    decay: Probability = 0.1
    max_decays: Annotated[int, Field(ge=0)] = 2
    precision: Literal["float32", "bfloat16", "auto"] = "float32"


class Perturbation(Settings):
    """The chosen word's probability after the perturbation, and the frequency it is chosen by."""

    probability: Probability = 1e-8
    frequency: Probability = 0.00114


class Curve(Settings):
    """One fine-tuning run of Figures 1 and 2."""

    loss: Literal["discriminator", "cross_entropy", "without_discriminator"]
    learning_rate: Positive
    epochs: Count


class Synthetic(Settings):
    """Section 3 of the paper: Table 1, Figures 1 and 2."""

    seeds: Count = 1
    language: Language = Language()
    sentences: Sentences = Sentences()
    classes: FrequencyClasses = FrequencyClasses()
    model: Model = Model()
    perturbation: Perturbation = Perturbation()
    language_model: Training
    literal: Training
    discriminator: Training
    finetuning: Training
    curves: tuple[Curve, ...]

    @model_validator(mode="after")
    def _classes_fit(self):
        wanted = self.classes.frequent + self.classes.almost_frequent
        if wanted >= self.language.n_words:
            raise ValueError(
                f"classes name {wanted} words but language.n_words is {self.language.n_words}"
            )
        return self


class Profile(Settings):
    """Everything a run needs to know."""

    name: str
    summary: str
    synthetic: Synthetic


def names() -> list[str]:
    """Names of the profiles there are."""
    return sorted(path.stem for path in paths.PROFILES.glob("*.toml"))


def load(name: str, *, seeds: int | None = None) -> Profile:
    """Read and validate a profile by name, or by the path of a file ending in ``.toml``.

    ``seeds`` overrides the number of seeds of the synthetic study.

    Raises :class:`SettingsError` for an unknown name, a file that is no TOML, an unknown key or a
    value out of range.
    """
    path = Path(name) if name.endswith(".toml") else paths.PROFILES / f"{name}.toml"
    if not path.is_file():
        raise SettingsError(f"there is no profile {name!r}; choose one of {', '.join(names())}")
    try:
        profile = Profile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path.name} is not valid TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the profile"
        raise SettingsError(f"{path.name}: {where}: {first['msg']}") from None
    if seeds is not None:
        if seeds < 1:
            raise SettingsError(f"the number of seeds must be at least 1, not {seeds}")
        synthetic = profile.synthetic.model_copy(update={"seeds": seeds})
        profile = profile.model_copy(update={"synthetic": synthetic})
    return profile
