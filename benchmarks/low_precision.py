"""What mixed precision does to the result: two trainings from one seed, each read in both ways."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from paperlib import hardware, settings
from paperlib.corpus_study import CorpusStudy
from paperlib.evaluation import BATCH_SIZE
from paperlib.models import AWDLSTM, LSTM
from paperlib.models.readings import log_q_of
from paperlib.stream_tasks import LanguageModelStreams
from paperlib.stream_text import on_device
from paperlib.streams import VALIDATION_STREAMS, over_tokens
from paperlib.synthetic import SyntheticStudy
from paperlib.tasks import LanguageModelTask
from paperlib.training import Task, Trainer


def measure(profile: str = "quick", epochs: int | None = None) -> pd.DataFrame:
    """One row a network and precision of its training as a language model.

    The synthetic study's network takes six epochs, the mixture of softmaxes as many as the profile
    says. Seconds of training; validation perplexity read in float32 and in mixed precision;
    standard deviation and largest size of what the latter changes in log q, nats.
    """
    loaded = settings.load(profile)
    return pd.DataFrame(_of_sentences(loaded, epochs or 6) + _of_text(loaded, epochs))


def _of_sentences(profile: settings.Profile, epochs: int) -> list[dict]:
    study = SyntheticStudy(profile.synthetic, seed=0)
    training = profile.synthetic.language_model.model_copy(update={"max_epochs": epochs})

    def new_model() -> LSTM:
        generator = torch.Generator().manual_seed(0)
        return LSTM(study.language.n_words, study.settings.model, generator).to(study.device)

    def make_task(title: str, model: LSTM, training: settings.Training) -> Task:
        mixed = training.precision == "mixed"
        return LanguageModelTask(title, model, study.split, seed=0, mixed=mixed)

    def read(model: LSTM, mixed: bool) -> Tensor:
        parts = study.split.valid.split(BATCH_SIZE)
        return torch.cat([log_q_of(model(part, mixed=mixed), part) for part in parts])

    return _rows("LSTM, the synthetic language", training, new_model, make_task, read)


def _of_text(profile: settings.Profile, epochs: int | None) -> list[dict]:
    study = CorpusStudy(profile, "mos_ptb")
    text, training = study.corpus, study.settings.language_model
    training = training.model_copy(update={"max_epochs": epochs or training.max_epochs})
    valid = on_device(text.valid, study.device)

    def make_task(title: str, model: AWDLSTM, training: settings.Training) -> Task:
        return LanguageModelStreams(title, model, text, training, seed=0)

    def read(model: AWDLSTM, mixed: bool) -> Tensor:
        device = study.device.type

        def of_target(encoded, target: Tensor) -> Tensor:
            with torch.autocast(device, enabled=False):  # as in training, for the encoder alone
                return model.log_q_of(encoded, target)

        with torch.autocast(device, torch.bfloat16, enabled=mixed):
            return over_tokens([model], valid, text.eos, of_target, VALIDATION_STREAMS)

    name = f"mixture of softmaxes, {text.title}"
    return _rows(name, training, study.new_model, make_task, read)


def _rows(
    network: str,
    training: settings.Training,
    new_model: Callable[[], nn.Module],
    make_task: Callable[[str, nn.Module, settings.Training], Task],
    read: Callable[[nn.Module, bool], Tensor],
) -> list[dict]:
    """``read(model, mixed)`` is log q of the validation text."""
    rows = []
    for precision in ("float32", "mixed"):
        model, own = new_model(), training.model_copy(update={"precision": precision})
        task = make_task(f"{network}, {precision}", model, own)
        with tempfile.TemporaryDirectory() as folder:
            progress = Trainer(task, own, Path(folder) / "checkpoint.pt").run()
        values = []
        for mixed in (False, True):
            with torch.no_grad(), hardware.rounded_products(mixed):
                values.append(read(model.eval(), mixed).double())
        exact, rounded = values
        rows.append(
            {
                "network": network,
                "training": precision,
                "seconds": progress.seconds,
                "perplexity": exact.mean().neg().exp().item(),
                "perplexity_mixed": rounded.mean().neg().exp().item(),
                "log_q_sd": (rounded - exact).std().item(),
                "log_q_largest": (rounded - exact).abs().max().item(),
            }
        )
    return rows
