"""The Fisher information: an estimate that is unbiased, rows squared one by one, float64 by hand."""

from itertools import product

import pytest
import torch

import workbench as wb
from workbench.corpora.encoding import encode, pad_batch
from workbench.geometry.fisher import fisher_diagonal, random_errors


@pytest.fixture(scope="module")
def exact():
    return wb.load_model("micro", device="cpu", dtype="float64")


@pytest.fixture(scope="module")
def batched(exact, references):
    """Two rows of each domain, in batches of any size."""
    tokenizer = exact[1]
    encoded = encode([row for domain in references.values() for row in domain.select(range(2))], tokenizer)
    return lambda n, size: [
        pad_batch(encoded[start : start + size], tokenizer.pad_token_id) for start in range(0, n, size)
    ]


@pytest.fixture(scope="module")
def rows(batched):
    return batched(8, 1)


def answers(model, row):
    """Log-probabilities of every token that might answer, (answer tokens, vocabulary), and the answer that is given."""
    marked = row["labels"][:, 1:] != -100
    logits = model(input_ids=row["input_ids"], attention_mask=row["attention_mask"]).logits[:, :-1]
    return logits[marked].log_softmax(-1), row["labels"][:, 1:][marked]


def test_random_errors_have_the_covariance_of_drawn_answers_exactly():
    """Over all 2⁵ patterns of signs, as likely as each other, and not only on average over many."""
    logits = torch.tensor([[2.0, -1.0, 0.3, 5.0, -7.0]], dtype=torch.float64)
    errors = torch.cat([random_errors(logits, torch.tensor([signs])) for signs in product((-1.0, 1.0), repeat=5)])
    p = logits.softmax(-1)[0]
    torch.testing.assert_close(errors.T @ errors / 32, torch.diag(p) - torch.outer(p, p), rtol=0, atol=1e-15)
    drawn = p - torch.eye(5, dtype=torch.float64)  # the gradient of −log p(y) by the logits, for each y
    torch.testing.assert_close(drawn.T @ torch.diag(p) @ drawn, torch.diag(p) - torch.outer(p, p), rtol=0, atol=1e-15)


def test_the_empirical_fisher_is_the_mean_of_squared_gradients_of_single_rows(exact, rows):
    model, _ = exact
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for row in rows:
        log_p, given = answers(model, row)
        gradients = torch.autograd.grad(log_p[torch.arange(len(given)), given].sum(), list(parameters.values()))
        for name, gradient in zip(total, gradients, strict=True):
            total[name] += gradient.square() / len(rows)
    for name, diagonal in fisher_diagonal(model, rows, parameters).items():
        torch.testing.assert_close(diagonal, total[name], rtol=1e-9, atol=1e-25)


@pytest.mark.parametrize("size", [1, 2], ids=["single rows", "batches"])
def test_the_fisher_information_is_that_of_all_answers_by_their_chances(exact, batched, size):
    """Against every answer's own gradient, weighed by its probability; by the weights of one norm, of which are few."""
    model, _ = exact
    parameters = {name: p for name, p in model.named_parameters() if name == "model.norm.weight"}
    (norm,) = parameters.values()
    total = torch.zeros_like(norm)
    for row in batched(2, 1):
        log_p, _ = answers(model, row)
        every = torch.eye(log_p.numel(), dtype=torch.float64).view(-1, *log_p.shape)
        (scores,) = torch.autograd.grad(log_p, norm, every, is_grads_batched=True)
        total += (log_p.detach().exp().flatten()[:, None] * scores.square()).sum(0) / 2
    generator = torch.Generator().manual_seed(0)
    (found,) = fisher_diagonal(model, batched(2, size) * 300, parameters, generator).values()
    assert (found.sum() / total.sum()).item() == pytest.approx(1, abs=0.15)
    assert torch.corrcoef(torch.stack([found, total]))[0, 1] > 0.95


def test_the_model_stays_as_it_was_and_wrong_rows_are_refused(exact, rows):
    model, _ = exact
    model.train()
    parameters, state = dict(model.named_parameters()), torch.get_rng_state()
    fisher_diagonal(model, rows[:1], parameters, torch.Generator())
    assert model.training and all(p.grad is None for p in parameters.values())
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ValueError, match="There is no row"):
        fisher_diagonal(model, [], parameters)
    with pytest.raises(ValueError, match="expected batches of one, got 2"):
        fisher_diagonal(model, [{name: torch.cat([value] * 2) for name, value in rows[0].items()}], parameters)
