"""Beyond the paper: exact sums and moments against enumeration, and the study at its smallest."""

import json
import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from paperlib import notebooks, paths
from paperlib.beyond import NONE, ORACLE, TRAINED, BeyondStudy, Variant
from paperlib.beyond_measures import (
    ExactContexts,
    divergences,
    repair,
    scatter,
)
from paperlib.cli import main
from paperlib.divergences import kl, second_term_moments
from paperlib.evaluation import over_batches
from paperlib.losses import exact_reverse_kl, finetuning_loss
from paperlib.models.readings import log_q
from paperlib.settings import QUESTIONS, SecondTerm, SettingsError, Synthetic, load
from paperlib.tasks import FinetuningTask
from paperlib.truth import TrueModel

WORDS = 7
TERMS = [
    SecondTerm(),
    SecondTerm(largest_t=1.3),
    SecondTerm(normalised=True, weight=0.4),
    SecondTerm(estimate="sum", weight=2.0),
    SecondTerm(weight=0),
]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAPERLIB_RUNS", str(tmp_path_factory.mktemp("runs")))
        yield BeyondStudy(load("smoke").synthetic)


def three_distributions(contexts: int = 4) -> tuple[torch.Tensor, ...]:
    """Logits of a model, log p, and an unnormalised log p̂; ``(contexts, WORDS)`` float64."""
    generator = torch.Generator().manual_seed(3)
    logits, p, noise = torch.randn(3, contexts, WORDS, generator=generator, dtype=torch.float64)
    return logits, p.log_softmax(-1), p.log_softmax(-1) + 0.5 * noise


def loss_of(logits, word: int, log_p_hat, term: SecondTerm):
    """Fine-tuning's loss at one true next word, term by term from eq. (8)–(12)."""
    q = torch.exp(logits) / torch.exp(logits).sum()
    p_hat = torch.exp(log_p_hat)
    if term.normalised:
        p_hat = p_hat / p_hat.sum()
    if term.estimate == "sum":
        second = sum(q[w] * torch.log(q[w] / p_hat[w]) for w in range(WORDS))
    else:
        t = q[word] / p_hat[word]
        if term.largest_t is not None and t > term.largest_t:
            t = torch.tensor(term.largest_t, dtype=torch.float64)
        second = t * torch.log(t)
    return -torch.log(q[word]) + term.weight * second, term.weight * second


# The exact sum


def test_the_exact_sum_and_its_gradient_against_a_loop():
    logits, _, log_p_hat = three_distributions()
    logits.requires_grad_()
    found = exact_reverse_kl(logits.log_softmax(-1), log_p_hat)
    found.sum().backward()
    for row in range(len(logits)):
        q = logits[row].detach().exp().numpy()
        q = q / q.sum()
        ratio = np.log(q) - log_p_hat[row].numpy()
        expected = sum(q[w] * ratio[w] for w in range(WORDS))
        assert found[row].item() == pytest.approx(expected, rel=1e-12)
        np.testing.assert_allclose(logits.grad[row], q * (ratio - expected), rtol=1e-10, atol=1e-14)


def test_the_exact_sum_passes_gradcheck():
    logits, _, log_p_hat = three_distributions(2)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: exact_reverse_kl(x.log_softmax(-1), log_p_hat), logits
    )


def test_normalising_p_hat_shifts_the_sum_and_leaves_its_gradient():
    logits, _, log_p_hat = three_distributions()
    values, gradients = [], []
    for estimate in (log_p_hat, log_p_hat.log_softmax(-1)):
        x = logits.clone().requires_grad_()
        value = exact_reverse_kl(x.log_softmax(-1), estimate)
        value.sum().backward()
        values.append(value.detach())
        gradients.append(x.grad)
    torch.testing.assert_close(values[1] - values[0], log_p_hat.logsumexp(-1))
    torch.testing.assert_close(*gradients)


def test_one_sample_with_the_true_p_is_the_sum_on_average():
    logits, log_p, _ = three_distributions()
    log_q_all = logits.log_softmax(-1)
    _, samples = finetuning_loss(log_q_all, log_p, torch.zeros_like(log_p))
    torch.testing.assert_close((log_p.exp() * samples).sum(-1), exact_reverse_kl(log_q_all, log_p))


def test_a_clipped_t_is_a_constant():
    log_q_true = torch.tensor([-1.0, -3.0], dtype=torch.float64, requires_grad=True)
    _, second = finetuning_loss(
        log_q_true, torch.full((2,), -2.0).double(), torch.zeros(2).double(), largest_t=1.5
    )
    second.sum().backward()
    assert second[0].item() == pytest.approx(1.5 * math.log(1.5))
    assert second[1].item() == pytest.approx(math.exp(-1) * -1)
    assert log_q_true.grad[0] == 0


@pytest.mark.parametrize("term", TERMS, ids=str)
def test_moments_against_enumeration_of_the_next_word(term):
    logits, log_p, log_p_hat = three_distributions()
    found = second_term_moments(logits.log_softmax(-1), log_p, log_p_hat, term)
    for row in range(len(logits)):
        p, log_q_row = log_p[row].exp(), logits[row].log_softmax(-1)
        values, gradients = [], []
        for word in range(WORDS):
            x = logits[row].clone().requires_grad_()
            loss, second = loss_of(x, word, log_p_hat[row], term)
            loss.backward()
            values.append(second.detach())
            gradients.append(x.grad)
        values, gradients = torch.stack(values), torch.stack(gradients)
        mean = (p * values).sum()
        mean_gradient = p @ gradients
        x = logits[row].clone().requires_grad_()
        x_q = x.log_softmax(-1)
        (-(p * x_q).sum() + term.weight * (x_q.exp() * (x_q - log_p[row])).sum()).backward()
        expected = {
            "expected": mean,
            "variance": (p * (values - mean) ** 2).sum(),
            "true": term.weight * kl(log_q_row, log_p[row]),
            "gradient_bias": ((mean_gradient - x.grad) ** 2).sum(),
            "gradient_signal": (mean_gradient**2).sum(),
            "gradient_noise": p @ ((gradients - mean_gradient) ** 2).sum(-1),
        }
        for name, value in expected.items():
            torch.testing.assert_close(found[name][row], value, rtol=1e-9, atol=1e-12)


def test_the_sum_has_no_clip():
    with pytest.raises(ValidationError, match="no t to clip"):
        SecondTerm(estimate="sum", largest_t=2.0)


# The oracle


def test_the_true_model_is_the_languages_next_word_distribution(study):
    sentence = study.split.valid[5].tolist()
    log_p = study.truth_in(study.split)(study.split.valid[5:6])[0].cpu()
    history = [0, 0, *(word + 1 for word in sentence)]
    for position in range(len(sentence)):
        expected = study.language.next_word_probs(history[position], history[position + 1])
        np.testing.assert_allclose(log_p[position].exp(), expected, rtol=1e-5)


def test_the_true_model_knows_only_the_contexts_it_was_made_for(study):
    few = TrueModel(study.language, study.split.valid[:2])
    with pytest.raises(ValueError, match="a context is not among"):
        few(study.split.train)


def test_finetuning_with_the_oracle_is_equation_12_with_the_optimal_discriminator(study):
    """r* = q_0/(q_0 + p) of eq. (7), written out, against p in the place of q_0."""
    model = study.initial.model
    task = study.task(Variant(ORACLE), model, study.split)
    batch = torch.arange(20)
    words = study.split.train[batch]
    at = words.unsqueeze(-1)
    with torch.no_grad():
        q0 = study.perturbed(words).double().softmax(-1).gather(-1, at)
        q = model(words).double().softmax(-1).gather(-1, at)
    p = torch.from_numpy(np.exp(study.language.log_prob(words.cpu().numpy() + 1))).unsqueeze(-1)
    p = p.to(q0.device)
    r = q0 / (q0 + p)
    t = q / q0 * r / (1 - r)
    parts = task.parts(batch)
    assert parts["reverse_kl"].item() == pytest.approx((t * t.log()).mean().item(), rel=1e-4)
    assert parts["cross_entropy"].item() == pytest.approx(-q.log().mean().item(), rel=1e-5)


# The options of fine-tuning


@pytest.mark.parametrize(
    "term",
    [
        SecondTerm(estimate="sum"),
        SecondTerm(estimate="sum", normalised=True, weight=0.5),
        SecondTerm(normalised=True),
        SecondTerm(largest_t=1.1, weight=2.0),
    ],
    ids=str,
)
def test_finetuning_task_against_the_loss_word_by_word(study, term):
    model, discriminator = study.initial.model, study.discriminator("perturbed").model
    task = study.task(Variant(TRAINED, term), model, study.split)
    batch = torch.arange(2)
    words = study.split.train[batch]
    with torch.no_grad():
        logits = model(words).double()
        odds = discriminator(words).double()
        log_p_hat = study.perturbed(words).double().log_softmax(-1) - odds
    expected = 0.0
    for row, column in np.ndindex(*words.shape):
        q, p_hat = logits[row, column].softmax(-1), log_p_hat[row, column].exp()
        p_hat = p_hat / p_hat.sum() if term.normalised else p_hat
        t = q / p_hat
        if term.estimate == "sum":
            expected += (q * t.log()).sum()
        else:
            t = min(t[words[row, column]].item(), term.largest_t or math.inf)
            expected += t * math.log(t)
    found = task.parts(batch)["reverse_kl"].item()
    assert found == pytest.approx(term.weight * float(expected) / words.numel(), rel=1e-4, abs=1e-6)


def test_new_options_leave_the_names_of_known_trainings(study):
    curve = study.settings.curves[0]
    assert (curve.loss, curve.learning_rate, curve.epochs) == (
        "discriminator",
        study.settings.finetuning.learning_rate,
        study.beyond.epochs,
    )
    assert study.tuned(Variant()).address == study.curve(curve).address
    plain = FinetuningTask(
        "t",
        study.initial.model,
        study.split,
        seed=0,
        q0=study.perturbed,
        discriminator=study.discriminator("perturbed").model,
    )
    explicit = study.task(Variant(), study.initial.model, study.split)
    batch = torch.arange(10)
    assert plain.parts(batch) == explicit.parts(batch)


def test_each_variant_is_a_training_of_its_own(study):
    variants = [Variant(term=SecondTerm(weight=3.0)), Variant(ORACLE), Variant(NONE), Variant()]
    assert len({study.tuned(variant).address for variant in variants}) == len(variants)


# The study


def test_perturbed_words_are_as_rare_as_asked(study):
    assert len(set(study.perturbed_words("several"))) == study.beyond.several
    assert set(study.perturbed_words("several")) <= set(study.classes.almost_frequent.tolist())
    assert set(study.perturbed_words("frequent")) <= set(study.classes.frequent.tolist())
    for of in ("several", "frequent"):
        probs = over_batches(
            study.start(of), study.split.valid, lambda logits, _: logits.softmax(-1)
        ).mean((0, 1))
        for word in study.perturbed_words(of):
            # Words lowered after it give it a little back.
            assert probs[word].item() == pytest.approx(
                study.settings.perturbation.probability, rel=0.2
            )


def test_a_stopped_discriminator_is_as_it_is_after_its_epochs(study):
    training = study.settings.discriminator
    hopeless = training.model_copy(update={"learning_rate": 1e3, "clip": 1e3})
    profile = study.settings.model_copy(update={"discriminator": hopeless})
    stopped = BeyondStudy(profile).stopped_discriminator("perturbed", 1)
    assert stopped.progress.epoch == 1
    assert stopped.progress.best_epoch == 0  # worse than before the first step
    untrained = study._new_model(stream=1).state_dict()
    weights = stopped.model.state_dict()
    assert not any(torch.equal(weights[name], untrained[name]) for name in weights)


def test_divergences_of_a_model_from_itself_vanish_and_tables_have_intervals(study):
    exact = ExactContexts(study)
    assert all(np.abs(values).max() < 1e-5 for values in exact.divergences(exact.truth).values())
    table = divergences(exact)
    changes = table.dropna(subset="from")
    for kind in ("forward", "reverse"):
        assert (table[kind] > 0).all()
        assert (changes[f"{kind}_low"] <= changes[f"{kind}_change"]).all()
        assert (changes[f"{kind}_change"] <= changes[f"{kind}_high"]).all()


def test_repair_counts_what_the_perturbation_cost(study):
    table = repair(ExactContexts(study))
    assert (table["lost"] > 0).all()
    assert (table.loc[table["perturbed"] == "several", "words"] == study.beyond.several).all()
    assert np.allclose(np.log(table["before"] / table["after"]), table["lost"] * table["recovered"])
    assert (table["low"] <= table["recovered"]).all()
    assert (table["recovered"] <= table["high"]).all()
    assert set(table["fine-tuned with"]) > {"cross-entropy alone"}


def test_a_profile_without_the_block_is_refused(study):
    without = study.settings.model_copy(update={"beyond": None})
    with pytest.raises(SettingsError, match="not run in this profile"):
        BeyondStudy(without)


def test_more_perturbed_words_than_there_are_candidates_are_refused(study):
    values = study.settings.model_dump()
    values["beyond"]["several"] = 1000
    with pytest.raises(ValidationError, match=r"beyond\.several is 1000 words"):
        Synthetic.model_validate(values)


def test_the_command_trains_all_that_the_notebook_reads(study, tmp_path):
    output = tmp_path / "beyond.json"
    assert main(["beyond", "--profile", "smoke", "--output", str(output)]) == 0
    made = json.loads(output.read_text(encoding="utf-8"))
    everything = {name: run.address for name, run in study.trainings()}
    assert made["trainings"] == everything

    together = {}
    for question in map(str, QUESTIONS):
        arguments = ["--profile", "smoke", "--question", question, "--output", str(output)]
        assert main(["beyond", *arguments]) == 0
        together |= json.loads(output.read_text(encoding="utf-8"))["trainings"]
    assert together == everything


def test_the_command_refuses_a_question_without_trainings(tmp_path, capsys):
    arguments = ["--profile", "smoke", "--question", "2", "--output", str(tmp_path / "x.json")]
    assert main(["beyond", *arguments]) == 2
    says = "Question 2 has no trainings of its own; 1, 3, 4, 5 have.\n"
    assert capsys.readouterr().err == says


def test_the_command_refuses_a_profile_without_the_block(tmp_path, capsys):
    text = (paths.PROFILES / "smoke.toml").read_text(encoding="utf-8")
    start, end = text.index("[synthetic.beyond]"), text.index("# Section 4")
    profile = tmp_path / "plain.toml"
    profile.write_text(text[:start] + text[end:], encoding="utf-8")
    assert main(["beyond", "--profile", str(profile), "--output", str(tmp_path / "x.json")]) == 2
    assert capsys.readouterr().err == f"Profile {profile} has no [synthetic.beyond].\n"


def test_the_notebook_is_left_out_where_the_profile_has_no_block():
    notebook = notebooks.declared()["09_beyond_the_paper"]
    profile = load("smoke", experiments="none")
    assert notebook.has_part_in(profile)
    synthetic = profile.synthetic.model_copy(update={"beyond": None})
    assert not notebook.has_part_in(profile.model_copy(update={"synthetic": synthetic}))
    assert notebook.reads("doc_ptb")


def test_scattered_points_are_the_models(study):
    points = scatter(ExactContexts(study), points=30, seed=1)
    again = scatter(ExactContexts(study), points=30, seed=1)
    assert points == again
    assert set(points) == {"frequent", "almost frequent", "other", "chosen word"}
    chosen = np.array(points["chosen word"]["q0"])
    in_context = over_batches(
        study.perturbed,
        torch.from_numpy(study.test[: study.beyond.sentences]).to(study.device),
        lambda logits, _: log_q(logits)[..., study.chosen],
    )
    in_context = in_context.cpu().numpy()
    assert all(np.isclose(in_context, value, atol=1e-4).any() for value in chosen)
