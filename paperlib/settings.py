"""Profiles: declarative TOML files, validated into frozen settings.

Unknown keys and values out of range are refused in one sentence, so a typing error never runs
silently with a default.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from paperlib.network import Network
from paperlib.profile_files import SettingsError, files, values
from paperlib.validated import Count, NonNegative, Positive, Probability, Settings, first_fault

MOST_SEEDS = 1000
"""Of section 3: its workflow has a job for each."""


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
    length: Annotated[int, Field(ge=3)] = 10


class ClassSizes(Settings):
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
    """SGD, or Adam, with gradient clipping, for every kind of training.

    On the schedule *plateau*, the learning rate is multiplied by ``decay`` after ``patience``
    epochs without improvement on the validation set, going back to the best weights; the plateau
    after ``max_decays`` decays ends the training, and so does ``max_epochs``. On the schedule
    *linear*, it falls evenly from step to step and reaches zero after ``max_epochs``.

    ``averaging`` evaluates and keeps the running mean of the weights: from the start (*always*) or
    from when the validation criterion is worse than the best of more than ``nonmono`` epochs ago
    (*triggered*; until then the rate does not decay). Going back to the best weights, it begins
    anew.
    """

    optimizer: Literal["sgd", "adam"] = "sgd"
    schedule: Literal["plateau", "linear"] = "plateau"
    learning_rate: Positive = 1.0
    batch_size: Count = 1024
    clip: Positive = 1.0
    weight_decay: NonNegative = 0.0
    max_epochs: Count
    patience: Count = 3
    decay: Probability = 0.1
    max_decays: Annotated[int, Field(ge=0)] = 2
    averaging: Literal["never", "triggered", "always"] = "never"
    nonmono: Count = 5
    precision: Literal["float32", "mixed", "auto"] = "float32"

    @model_validator(mode="after")
    def _only_plateaus_trigger(self):
        if self.schedule == "linear" and self.averaging == "triggered":
            raise ValueError("averaging is triggered by a plateau; the schedule 'linear' has none")
        return self

    def at_constant_rate(self, rate: float, epochs: int) -> Self:
        """The same training for so many epochs at one learning rate."""
        constant = {"schedule": "plateau", "learning_rate": rate, "patience": epochs + 1}
        return self.model_copy(update=constant | {"max_epochs": epochs})


class SentenceTraining(Training):
    """Training on sentences: the objective is the mean loss of a word or of a whole sentence."""

    loss_per: Literal["sentence", "word"] = "sentence"


class StreamTraining(Training):
    """Training on running text by truncated back-propagation through time (BPTT).

    ``batch_size`` is a number of streams, worked on in ``parts`` groups that only save memory. A
    piece is some ``bptt`` words long, at most ``bptt_excess`` more (see
    :func:`paperlib.streams.pieces`), and the learning rate is in proportion to its length.
    ``regularised`` switches dropout and the network's other regularisation.
    """

    batch_size: Count = 12
    clip: Positive = 0.25
    bptt: Count = 70
    bptt_excess: Annotated[int, Field(ge=0)] = 20
    parts: Count = 1
    regularised: bool = True
    max_decays: Annotated[int, Field(ge=0)] = 0


class Perturbation(Settings):
    """The chosen word's probability after the perturbation, and the frequency it is chosen by."""

    probability: Probability = 1e-8
    frequency: Probability = 0.00114


class Curve(Settings):
    """One fine-tuning run of Figures 1 and 2."""

    loss: Literal["discriminator", "cross_entropy", "without_discriminator"]
    learning_rate: Positive
    epochs: Count


class Search(Settings):
    """Learning rates tried beside the profile's own; those of section 3 on the perturbed model."""

    discriminator: tuple[Positive, ...] = ()
    finetuning: tuple[Positive, ...] = ()


class TextSearch(Search):
    """The same for section 4, where there is a control."""

    cross_entropy: tuple[Positive, ...] = ()
    """The control takes the best of these and of fine-tuning's own."""


class SecondTerm(Settings):
    """How fine-tuning takes the reverse KL divergence of eq. (9); the paper's eq. (12) by default.

    ``estimate`` is t log t at the true next word, or the exact *sum* over the vocabulary.
    ``normalised`` divides p̂ by its sum over the vocabulary. ``largest_t`` clips t of the one-sample
    estimate: a word beyond it gets no gradient from this term. ``weight`` is λ in CE + λ KL.
    """

    estimate: Literal["one_sample", "sum"] = "one_sample"
    normalised: bool = False
    largest_t: Positive | None = None
    weight: NonNegative = 1.0

    @model_validator(mode="after")
    def _only_samples_are_clipped(self):
        if self.estimate == "sum" and self.largest_t is not None:
            raise ValueError("largest_t clips the one-sample estimate; the sum has no t to clip")
        return self


QUESTIONS = (1, 3, 4, 5)
"""Those of notebook 09 that have trainings of their own, which can go side by side."""


class Beyond(Settings):
    """What the paper leaves open, on the synthetic language (notebook 09), for the first seed.

    Each fine-tuning takes ``epochs`` epochs at a constant rate, the profile's or ``fast_rate``.
    ``early`` are numbers of epochs after which a discriminator is stopped; the last of them is that
    of the other perturbations: ``several`` almost frequent words at once, and a frequent word.
    ``weights`` and ``largest_t`` are tried in :class:`SecondTerm`. Exact sums over the vocabulary
    are taken in the contexts of the first ``sentences`` test sentences, and intervals come from
    ``resamples`` bootstrap samples.
    """

    epochs: Count
    fast_rate: Positive = 1.0
    early: Annotated[tuple[Count, ...], Field(min_length=1)]
    weights: tuple[NonNegative, ...] = (0.3, 3.0)
    largest_t: tuple[Positive, ...] = (1.05, 1.5)
    several: Annotated[int, Field(ge=2)] = 5
    sentences: Count = 1000
    resamples: Count = 2000


class Synthetic(Settings):
    """Section 3 of the paper: Table 1, Figures 1 and 2."""

    seeds: Count = 1
    language: Language = Language()
    sentences: Sentences = Sentences()
    classes: ClassSizes = ClassSizes()
    model: Model = Model()
    perturbation: Perturbation = Perturbation()
    language_model: SentenceTraining
    literal: SentenceTraining
    discriminator: SentenceTraining
    finetuning: SentenceTraining
    search: Search = Search()
    curves: Annotated[tuple[Curve, ...], Field(min_length=1)]
    beyond: Beyond | None = None

    @model_validator(mode="after")
    def _classes_fit(self):
        wanted = self.classes.frequent + self.classes.almost_frequent
        if wanted >= self.language.n_words:
            raise ValueError(
                f"classes name {wanted} words but language.n_words is {self.language.n_words}"
            )
        if self.beyond and self.beyond.several >= self.classes.almost_frequent:
            raise ValueError(
                f"beyond.several is {self.beyond.several} words but classes.almost_frequent only "
                f"{self.classes.almost_frequent}"
            )
        return self


class Tokens(Settings):
    """How many of a corpus's first tokens are used; all where no number is given."""

    train: Count | None = None
    valid: Count | None = None
    test: Count | None = None


class DynamicUpdate(Settings):
    """Parameters of dynamic evaluation (see :mod:`paperlib.dynamic`); by default those that Krause
    et al. give for an AWD-LSTM on Penn Treebank.

    They belong to the equations. Code of that time, the mixture of softmaxes' included, took sums
    for means: its learning rates and ε are √(number of pieces), 43 on Penn Treebank, times as
    large, and its decays as many times as there are parameter tensors.
    """

    learning_rate: Positive = 5e-5
    decay: Probability = 0.002
    epsilon: Positive = 2e-5
    bptt: Count = 5


class DynamicEvaluation(Settings):
    """Dynamic evaluation, and the grid its parameters are searched on.

    The search looks at the first ``search_tokens`` of the validation text. The gradients'
    statistics come from the first ``statistics_tokens`` of the training text in ``streams``.
    """

    learning_rates: tuple[Positive, ...] = (3e-5, 5e-5, 1e-4)
    decays: tuple[Probability, ...] = (0.001, 0.002, 0.005)
    epsilon: Positive = 2e-5
    bptt: Count = 5
    search_tokens: Count | None = None
    statistics_tokens: Count | None = None
    streams: Count = 100

    def grid(self) -> list[DynamicUpdate]:
        """All candidates, in the order of the lists."""
        return [
            DynamicUpdate(learning_rate=rate, decay=decay, epsilon=self.epsilon, bptt=self.bptt)
            for rate in self.learning_rates
            for decay in self.decays
        ]


class Experiment(Settings):
    """One network on one corpus: section 4."""

    corpus: str
    first: Tokens = Tokens()
    network: Network
    language_model: StreamTraining
    second_run: StreamTraining | None = None
    discriminator: StreamTraining
    finetuning: StreamTraining
    all_options: bool = False
    """Fine-tune in all four ways of Table 2, not in one way only."""
    control: bool = False
    """Beside them, train on by cross-entropy alone, which Table 2 has not."""
    dynamic: DynamicEvaluation | None = None
    search: TextSearch | None = None
    """Where it stands, a discriminator without dropout and other regularisation is trained too."""

    @model_validator(mode="after")
    def _rates_have_a_control(self):
        if self.search and self.search.cross_entropy and not self.control:
            raise ValueError(
                "search.cross_entropy has rates of the control, which is run with `control = true` "
                "alone; set it or leave the rates out"
            )
        return self


class LargeScale(Settings):
    """Section 4.3: text that comes in parts, an epoch being one part.

    The text is that of ``shards`` made elsewhere, at an address that fsspec reads, where a relative
    folder begins in the project; or that of a folder of ``PAPERLIB_DATA`` or ``data/``, if
    ``folder`` names one that is there; or else sentences of the synthetic language with ``words``
    words.
    """

    shards: str | None = None
    folder: str | None = None
    words: Annotated[int, Field(ge=3)] = 100_000
    """Size of the vocabulary."""
    part_bytes: Count = 20_000_000
    """Text of a part of a folder."""
    parts_at_once: Count = 1
    """Parts of an epoch. The streams of a batch are shared out among them, so that of many
    processes each reads a part of its own."""
    held_out: Probability = 0.001
    """Share of a folder's documents that is validation text, and as much test text."""
    part: Count
    """Sentences of a part of the synthetic language; ``valid`` and ``test`` are sentences too."""
    valid: Count
    test: Count
    length: Count = 10
    network: Network
    language_model: StreamTraining
    second_run: None = None
    discriminator: StreamTraining
    finetuning: StreamTraining
    contexts: Count = 1000
    """Contexts of the test text in which the true divergences are summed over the vocabulary."""
    resamples: Count = 1000


class Profile(Settings):
    """Everything a run needs to know."""

    name: str
    summary: str
    embedded_instead: bool = False
    """Use the text that every Python brings along where a corpus is not to be had."""
    synthetic: Synthetic
    corpora: dict[str, Experiment] = Field(default_factory=dict)
    large: LargeScale | None = None


def load(name: str, *, seeds: int | None = None, experiments: str | None = None) -> Profile:
    """Read and validate a profile by name, or by the path of a file ending in ``.toml``.

    ``seeds`` overrides the number of seeds of the synthetic study; ``experiments`` keeps only some
    experiments of section 4, named with commas between them (``large`` is section 4.3), or *none*.

    Raises :class:`SettingsError` for an unknown name, a file that is no TOML, an unknown key or a
    value out of range.
    """
    if not isinstance(name, str):
        raise SettingsError(f"a profile is named by a text such as 'quick', not by {name!r}")
    try:
        profile = Profile.model_validate(values(name))
    except ValidationError as error:
        read = ", based on ".join(path.name for path in files(name))
        raise SettingsError(f"{read}: {first_fault(error)}") from None
    if seeds is not None:
        if type(seeds) is not int or not 1 <= seeds <= MOST_SEEDS:
            raise SettingsError(
                f"the number of seeds must be a whole number from 1 to {MOST_SEEDS}, not {seeds!r}"
            )
        synthetic = profile.synthetic.model_copy(update={"seeds": seeds})
        profile = profile.model_copy(update={"synthetic": synthetic})
    if experiments is not None:
        if not isinstance(experiments, str):
            raise SettingsError(
                f"experiments are named in one text with commas, such as 'mos_ptb,large', not by "
                f"{experiments!r}"
            )
        wanted = [part.strip() for part in experiments.split(",")]
        profile = _with_only(profile, [] if wanted == ["none"] else wanted)
    return profile


def _with_only(profile: Profile, wanted: list[str]) -> Profile:
    """The profile with these experiments of section 4 alone; ``large`` is section 4.3."""
    there_are = [*profile.corpora, *(["large"] if profile.large else [])]
    for name in wanted:
        if name not in there_are:
            raise SettingsError(
                f"profile {profile.name} has no experiment {name!r}; it has {', '.join(there_are)}"
            )
    corpora = {name: one for name, one in profile.corpora.items() if name in wanted}
    large = profile.large if "large" in wanted else None
    return profile.model_copy(update={"corpora": corpora, "large": large})
