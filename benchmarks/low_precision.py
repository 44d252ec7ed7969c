"""What mixed precision does to the result: two trainings from one seed, each read in both ways."""

import tempfile
from pathlib import Path

import pandas as pd
import torch

from paperlib import hardware, settings
from paperlib.models import LSTM
from paperlib.models.readings import log_q_of
from paperlib.synthetic import SyntheticStudy
from paperlib.tasks import LanguageModelTask
from paperlib.training import Trainer


def measure(profile: str = "quick", epochs: int = 6) -> pd.DataFrame:
    """One row a precision of training, from the synthetic study's language model.

    Seconds of training; validation perplexity read in float32 and in mixed precision; standard
    deviation and largest size of what the latter changes in log q, nats.
    """
    study = SyntheticStudy(settings.load(profile).synthetic, seed=0)
    training = study.settings.language_model.model_copy(update={"max_epochs": epochs})
    rows = []
    for mixed in (False, True):
        generator = torch.Generator().manual_seed(0)
        model = LSTM(study.language.n_words, study.settings.model, generator).to(study.device)
        name = "mixed" if mixed else "float32"
        task = LanguageModelTask(name, model, study.split, seed=0, mixed=mixed)
        with tempfile.TemporaryDirectory() as folder:
            progress = Trainer(task, training, Path(folder) / "checkpoint.pt").run()
        with torch.no_grad():
            exact, rounded = (_log_q(model, study.split.valid, rounds) for rounds in (False, True))
        rows.append(
            {
                "training": name,
                "seconds": progress.seconds,
                "perplexity": exact.mean().neg().exp().item(),
                "perplexity_mixed": rounded.mean().neg().exp().item(),
                "log_q_sd": (rounded - exact).std().item(),
                "log_q_largest": (rounded - exact).abs().max().item(),
            }
        )
    return pd.DataFrame(rows)


def _log_q(model: LSTM, words: torch.Tensor, mixed: bool) -> torch.Tensor:
    with hardware.rounded_products(mixed):
        parts = [log_q_of(model(part, mixed=mixed), part) for part in words.split(1024)]
    return torch.cat(parts).double()
