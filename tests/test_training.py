"""The training loop: schedule, checkpoints, and that an interruption changes nothing."""

import math

import numpy as np
import pytest
import torch
from conftest import stops_after
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn

from paperlib import training
from paperlib.averaging import Average
from paperlib.checkpoints import CheckpointError, load_state, save_state
from paperlib.models import LSTM
from paperlib.settings import Model, SentenceTraining, Training
from paperlib.tasks import LanguageModelTask, Probe, Split
from paperlib.training import Task, Trainer, TrainingError

SETTINGS = SentenceTraining(batch_size=8, max_epochs=3, patience=1, max_decays=1)
STEPS = 3 * 4


def language_model_task():
    generator = torch.Generator().manual_seed(3)
    sentences = torch.randint(7, (40, 5), generator=generator)
    model = LSTM(7, Model(embedding=4, hidden=4), generator)
    probe = Probe(sentences[:2], torch.tensor([2, 3]), torch.tensor([1, 0]))
    split = Split(sentences[:30], sentences[30:])
    return LanguageModelTask("test", model, split, seed=5, probe=probe)


def weights_of(trainer):
    return {name: tensor.clone() for name, tensor in trainer.task.model.state_dict().items()}


def without_time(progress):
    return {name: value for name, value in vars(progress).items() if name != "seconds"}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    trainer = Trainer(
        language_model_task(), SETTINGS, tmp_path_factory.mktemp("whole") / "checkpoint.pt"
    )
    progress = trainer.run()
    return without_time(progress), weights_of(trainer)


@hypothesis_settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(first=st.integers(0, STEPS - 1), second=st.integers(0, STEPS - 1))
def test_resumed_equals_uninterrupted(first, second, uninterrupted, tmp_path_factory):
    checkpoint = tmp_path_factory.mktemp("parts") / "checkpoint.pt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "CHECKPOINT_EVERY_SECONDS", -1.0)
        for steps in (first, second):
            task = stops_after(language_model_task(), steps)
            try:
                Trainer(task, SETTINGS, checkpoint).run()
            except KeyboardInterrupt:
                torch.rand(1)  # whatever happens in between must not matter
    trainer = Trainer(language_model_task(), SETTINGS, checkpoint)
    progress = trainer.run()
    expected_progress, expected_weights = uninterrupted
    assert without_time(progress) == expected_progress
    for name, tensor in weights_of(trainer).items():
        assert torch.equal(tensor, expected_weights[name]), name


@pytest.mark.parametrize("every", [3, 100])
def test_losses_that_are_read_later_change_nothing(every, uninterrupted, tmp_path):
    """As on a GPU, where not every step waits for its loss."""
    trainer = Trainer(language_model_task(), SETTINGS, tmp_path / "checkpoint.pt")
    trainer._read_every = every
    progress = without_time(trainer.run())
    expected, weights = uninterrupted
    assert progress == expected
    torch.testing.assert_close(weights_of(trainer), weights, rtol=0, atol=0)


def test_one_step_is_sgd_with_clipping_written_out(tmp_path):
    task = language_model_task()
    task.split = Split(task.split.train, task.split.train)  # so that the step improves it
    settings = SentenceTraining(
        learning_rate=0.7, batch_size=30, clip=0.01, loss_per="sentence", max_epochs=1
    )
    reference = language_model_task().model
    words = task.split.train
    logits = reference(words)
    log_q = logits - torch.log(torch.exp(logits).sum(-1, keepdim=True))
    rows, columns = np.indices(words.shape)
    loss = -log_q[rows, columns, words.numpy()].sum() / len(words)
    gradients = torch.autograd.grad(loss, list(reference.parameters()))
    norm = math.sqrt(sum((gradient**2).sum().item() for gradient in gradients))
    Trainer(task, settings, tmp_path / "checkpoint.pt").run()
    for trained, before, gradient in zip(
        task.model.parameters(), reference.parameters(), gradients, strict=True
    ):
        expected = before - 0.7 * gradient * 0.01 / norm
        torch.testing.assert_close(trained, expected.detach(), atol=1e-6, rtol=1e-4)


class Scripted(Task):
    """A task whose validation values are given; its one weight counts the steps."""

    title, criterion = "scripted", "value"

    def __init__(self, values, steps=1):
        self.model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.model.weight)
        self.values = iter(values)
        self.steps = steps
        self.seen = []

    def batches(self, epoch, size):
        return list(range(self.steps))

    def backward(self, batch):
        loss = -self.model.weight.sum()
        loss.backward()
        return {"loss": loss.detach()}

    def validate(self):
        self.seen.append(self.model.weight.item())
        return {"value": next(self.values)}


def test_the_rate_decays_after_the_patience_and_goes_back_to_the_best_weights(tmp_path):
    settings = Training(max_epochs=20, patience=2, decay=0.5, max_decays=1)
    task = Scripted([9, 5, 6, 6, 4, 7, 7])
    progress = Trainer(task, settings, tmp_path / "checkpoint.pt").run()
    assert [entry["learning_rate"] for entry in progress.history] == [1, 1, 1, 1, 0.5, 0.5, 0.5]
    # One step of 1 to the best of the first plateau, then one of 0.5 from there.
    assert task.model.weight.item() == pytest.approx(1.5, rel=1e-5)
    assert (progress.best, progress.best_epoch, progress.epoch) == (4, 4, 6)


@pytest.mark.parametrize("changes", [{}, {"averaging": "triggered", "nonmono": 1}])
def test_a_plateau_is_told_from_a_limit_of_epochs(changes, tmp_path):
    """It is one where a training without that limit ends at the same epoch."""
    values = [9, 5, 6, 6, 4, 7, 7, 7, 7, 7]

    def run(limit):
        settings = Training(max_epochs=limit, patience=2, max_decays=1, **changes)
        progress = Trainer(Scripted(values), settings, tmp_path / f"{limit}.pt").run()
        return progress.epoch, progress.at_plateau(settings)

    end, at_plateau = run(20)
    assert at_plateau
    assert [run(limit) for limit in range(1, end + 1)] == [
        (limit, limit == end) for limit in range(1, end + 1)
    ]


@pytest.mark.parametrize("ends", [{"max_epochs": 20, "max_decays": 0}, {"max_epochs": 2}])
def test_the_last_weights_are_kept_where_they_are_wanted(ends, tmp_path):
    """Also where the training ends, by its epochs or its decays, when a decay would be due."""
    settings = Training(patience=2, **ends)
    for last, steps in ((True, 2), (False, 0)):
        task = Scripted([1, 2, 3])
        Trainer(task, settings, tmp_path / f"{last}.pt", last=last).run()
        assert task.model.weight.item() == pytest.approx(steps, rel=1e-5)


def test_the_last_weights_of_an_average_are_the_average(tmp_path):
    """What was validated last; the steps alone end at 6."""
    settings = Training(max_epochs=3, averaging="always")
    for _ in range(2):  # also where the training is found finished
        task = Scripted([9, 3, 4, 5], steps=2)
        Trainer(task, settings, tmp_path / "checkpoint.pt", last=True).run()
        assert task.model.weight.item() == pytest.approx(3.5, rel=1e-5)


def test_without_a_checkpoint_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "CHECKPOINT_EVERY_SECONDS", -1.0)
    kept = Trainer(language_model_task(), SETTINGS, tmp_path / "checkpoint.pt").run()
    (tmp_path / "checkpoint.pt").unlink()
    assert Trainer(language_model_task(), SETTINGS, None).run().history == kept.history
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_other_settings_is_refused_in_one_sentence(tmp_path):
    path = tmp_path / "checkpoint.pt"
    Trainer(Scripted([1, 2, 3]), Training(max_epochs=2), path).run()
    other = Training(max_epochs=2, learning_rate=0.5, clip=2.0)
    with pytest.raises(CheckpointError) as error:
        Trainer(Scripted([1, 2, 3]), other, path).run()
    assert "another training (learning_rate 1.0, not 0.5; clip 1.0, not 2.0)" in str(error.value)
    state = load_state(path, torch.device("cpu"))
    del state["settings"]  # of an earlier version
    save_state(path, state)
    assert Trainer(Scripted([]), other, path).run().epoch == 2


def test_validation_without_a_number_is_one_sentence_and_infinity_is_worst(tmp_path):
    with pytest.raises(TrainingError, match="scripted: validation after epoch 1 gives no number"):
        Trainer(Scripted([1, math.nan]), Training(max_epochs=2), tmp_path / "nan.pt").run()
    for values, steps in (([math.inf] * 3, 0), ([math.inf, 2, math.inf], 1)):
        task = Scripted(values)
        progress = Trainer(task, Training(max_epochs=2), tmp_path / f"{steps}.pt").run()
        assert progress.best_epoch == steps
        assert task.model.weight.item() == pytest.approx(steps, rel=1e-5)


def test_a_model_that_does_not_improve_stays_as_it_was(tmp_path):
    task = Scripted([1, 2, 3])
    Trainer(task, Training(max_epochs=2), tmp_path / "checkpoint.pt").run()
    assert task.model.weight.item() == 0


def test_a_loss_that_is_not_finite_ends_in_one_sentence(tmp_path):
    for good, says in (
        (0, "not finite before any step; look for NaN and -inf"),
        (1, "no longer finite in epoch 1 at learning rate 1; lower the learning rate"),
    ):
        task = Scripted([1, 1], steps=3)
        losses = iter([torch.tensor(1.0)] * good + [torch.tensor(math.nan)])
        task.backward = lambda batch, losses=losses: {"loss": next(losses)}
        with pytest.raises(TrainingError, match=says):
            Trainer(task, Training(max_epochs=2), tmp_path / f"{good}.pt").run()


def test_averaging_evaluates_and_keeps_the_mean_of_the_weights_since_it_began(tmp_path):
    """Each step adds 1 to the weight, so the mean after n of them is known."""
    settings = Training(max_epochs=3, averaging="always", clip=1.0)
    task = Scripted([9, 5, 4, 3], steps=2)
    progress = Trainer(task, settings, tmp_path / "checkpoint.pt").run()
    assert task.seen == pytest.approx([0, 1.5, 2.5, 3.5], rel=1e-5)
    assert task.model.weight.item() == pytest.approx(3.5, rel=1e-5)
    assert progress.averaging_since == 0


def test_triggered_averaging_waits_for_the_non_monotonic_criterion(tmp_path):
    settings = Training(max_epochs=6, patience=99, averaging="triggered", nonmono=1)
    # 6 is worse than 5, the best but for the epoch just before it; 4 without improvement is not.
    task = Scripted([9, 5, 4, 6, 5, 4, 3])
    progress = Trainer(task, settings, tmp_path / "checkpoint.pt").run()
    assert progress.averaging_since == 3
    assert task.seen == pytest.approx([0, 1, 2, 3, 4, 4.5, 5], rel=1e-5)


def test_what_triggers_averaging_is_not_the_network_before_training(tmp_path):
    """A discriminator begins at a guess, and may be worse than that for some epochs."""
    settings = Training(max_epochs=4, patience=99, averaging="triggered", nonmono=1)
    values = [4, 8, 7, 6, 5]
    assert training.non_monotonic(values[:3], 1)
    progress = Trainer(Scripted(values), settings, tmp_path / "checkpoint.pt").run()
    assert progress.averaging_since is None


@given(values=st.lists(st.integers(0, 5), min_size=1, max_size=12), n=st.integers(1, 5))
def test_the_non_monotonic_criterion_forgives_the_last_n_epochs(values, n):
    """The published code appends an epoch's loss to its list after it has asked."""
    triggered, logs = [], []
    for value in values:
        triggered.append(len(logs) > n and any(value > logged for logged in logs[: len(logs) - n]))
        logs.append(value)
    assert training.non_monotonic(values, n) == triggered[-1]


def test_an_average_begins_anew_where_a_decay_goes_back_to_the_best_weights(tmp_path):
    settings = Training(
        max_epochs=4, patience=1, max_decays=1, decay=0.1, averaging="always", learning_rate=1.0
    )
    task = Scripted([5, 4, 6, 3, 2])
    Trainer(task, settings, tmp_path / "checkpoint.pt").run()
    # Weights 1 and 2, averaged; then from the best, 1, in steps of 0.1.
    assert task.seen == pytest.approx([0, 1, 1.5, 1.1, 1.15], rel=1e-5)


AVERAGED = {
    "averaging": "triggered",
    "nonmono": 1,
    "max_epochs": 4,
    "learning_rate": 30.0,
    "patience": 9,
}
ADAM = {"optimizer": "adam", "schedule": "linear", "learning_rate": 0.1}


@pytest.mark.parametrize("changes", [AVERAGED, ADAM], ids=["averaged", "adam"])
def test_what_the_optimiser_remembers_survives_an_interruption(changes, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_EVERY_SECONDS", -1.0)
    settings = SETTINGS.model_copy(update=changes)
    whole = Trainer(language_model_task(), settings, tmp_path / "whole.pt")
    expected = without_time(whole.run())
    assert (expected["averaging_since"] is not None) == (changes is AVERAGED)
    for steps in (6, 5):
        task = stops_after(language_model_task(), steps)
        with pytest.raises(KeyboardInterrupt):
            Trainer(task, settings, tmp_path / "parts.pt").run()
    resumed = Trainer(language_model_task(), settings, tmp_path / "parts.pt")
    assert without_time(resumed.run()) == expected
    for name, tensor in weights_of(resumed).items():
        assert torch.equal(tensor, weights_of(whole)[name])


def test_adam_on_a_linear_schedule_takes_steps_of_the_falling_rate(tmp_path):
    """Where the gradient is constant, each step of Adam is as long as the rate."""
    settings = Training(optimizer="adam", schedule="linear", learning_rate=0.8, max_epochs=2)
    task = Scripted([9, 5, 4], steps=4)
    Trainer(task, settings, tmp_path / "checkpoint.pt").run()
    rates = [0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    assert task.seen == pytest.approx([0, sum(rates[:4]), sum(rates)], rel=1e-5)


def test_a_linear_schedule_knows_no_patience(tmp_path):
    settings = Training(schedule="linear", max_epochs=4, patience=1, max_decays=0)
    task = Scripted([1, 2, 3, 4, 0])
    progress = Trainer(task, settings, tmp_path / "checkpoint.pt").run()
    assert (progress.epoch, progress.best_epoch) == (4, 4)


def test_averaged_weights_are_taken_back_when_validation_fails():
    model = nn.Linear(2, 2)
    average = Average(model)
    before = [parameter.clone() for parameter in model.parameters()]
    average.weights = [torch.zeros_like(weight) for weight in average.weights]
    inside = []

    def fail():
        with average.applied(model):
            inside.extend(parameter.clone() for parameter in model.parameters())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not any(parameter.any() for parameter in inside)
    assert all(torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True))


def test_a_damaged_checkpoint_is_named(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_state(path, {"progress": {}, "tensor": torch.ones(1000)})
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt cannot be read"):
        load_state(path, torch.device("cpu"))


def test_a_checkpoint_never_runs_code(tmp_path):
    class Payload:
        def __reduce__(self):
            return (print, ("ran",))

    path = tmp_path / "checkpoint.pt"
    torch.save({"progress": Payload()}, path)
    with pytest.raises(CheckpointError):
        load_state(path, torch.device("cpu"))


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_state(path, {"epoch": 1})
    with pytest.raises(Exception, match="pickle"):
        save_state(path, {"epoch": lambda: None})
    assert load_state(path, torch.device("cpu")) == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]
