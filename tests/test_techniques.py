"""EWC, gradient surgery and confidence weighting inside real trainers, against float64 by hand; A-GEM and GEM."""

import random
from types import SimpleNamespace

import pytest
import torch
from conftest import same, weights
from datasets import concatenate_datasets
from torch.nn import functional as F
from trl import SFTConfig, SFTTrainer

import workbench as wb
from workbench.alignment.confidence import row_likelihood, row_weights
from workbench.alignment.kl import kl_divergence
from workbench.corpora.encoding import IGNORED, encode, pad_batch
from workbench.geometry.cone import nonnegative_qp

ROWS, RATE = 8, 0.125  # one batch, of all rows there are, so that their order does not matter; a power of two
SGD = {"steps": 1, "batch_size": ROWS, "learning_rate": RATE, "optim": "sgd", "max_grad_norm": 0.0, "warmup_steps": 0}
NEW = {
    "ewc": lambda references: wb.EWC(references, 10.0, n_samples=16),
    "pcgrad": lambda references: wb.GradientSurgery(references, n_samples=8),
    "safegrad": lambda references: wb.GradientSurgery(references, "safegrad", n_samples=8),
    "safegrad, kl": lambda references: wb.GradientSurgery(references, "safegrad", loss="kl", n_samples=8),
    "confidence": lambda references: wb.ConfidenceWeighting(2.0),
}
WITHOUT_EFFECT = {
    "ewc": lambda references: wb.EWC(references, 0.0, n_samples=8),
    "pcgrad": lambda references: wb.GradientSurgery(references, weight=0.0, n_samples=8),
    "safegrad": lambda references: wb.GradientSurgery(references, "safegrad", weight=0.0, n_samples=8),
    "confidence": lambda references: wb.ConfidenceWeighting(0.0),
}


@pytest.fixture(scope="module")
def few(world):
    """References of which every step takes all rows; the safety gradient points against some of them."""
    return world.references(4)


@pytest.fixture(scope="module")
def stepped(world, tmp_path_factory):
    """The gradient that reached plain SGD at the first step, in float64, from how far it went."""

    def go(technique=None, objective="sft", start=None):
        model, tokenizer = wb.load_model("micro", device="cpu", dtype="float64")
        if start:
            model.load_state_dict(start, strict=False)
        before = weights(model)
        rows = world.demonstrations(ROWS) if objective == "sft" else world.preferences(ROWS)
        options = {**SGD, "runs_dir": tmp_path_factory.mktemp("runs"), "progress": False}
        wb.align(model, tokenizer, rows, objective, technique, **options)
        return {name: (before[name] - weight) / RATE for name, weight in weights(model).items()}

    return go


@pytest.fixture(scope="module")
def moved(world, tmp_path_factory):
    """Weights on the way of a plain safety training: where gradients of safety and abilities have grown apart."""
    model, tokenizer = wb.load_model("micro", device="cpu", dtype="float64")
    options = {"steps": 20, "learning_rate": 2e-3, "runs_dir": tmp_path_factory.mktemp("runs"), "progress": False}
    wb.align(model, tokenizer, world.demonstrations(), **options)
    return weights(model)


def references_at(start, few):
    """The references' gradients at weights, one a domain, as vectors."""
    model, tokenizer = wb.load_model("micro", device="cpu", dtype="float64")
    model.load_state_dict(start, strict=False)
    batches = {d: [pad_batch(encode(rows, tokenizer), tokenizer.pad_token_id)] for d, rows in few.items()}
    found = wb.reference_gradients(model, batches).tensors
    return [flat({name: rows[k] for name, rows in found.items()}) for k in range(len(few))]


def flat(tensors):
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


# --- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_without_strength_they_train_bit_for_bit_like_nothing(train, world, references, objective):
    rows = world.demonstrations(32) if objective == "sft" else world.preferences(32)
    plain, model = train(None, objective, rows)
    for technique in WITHOUT_EFFECT.values():
        run, other = train(technique(references), objective, rows)
        assert same(weights(model), weights(other))
        assert list(plain.history.loss) == list(run.history.loss)


@pytest.mark.parametrize("technique", NEW)
def test_a_resumed_training_goes_on_bit_for_bit(world, references, technique, tmp_path):
    def go(folder, steps, resume=False):
        model, tokenizer = wb.load_model("micro", device="cpu")
        settings = {"max_steps": steps, "per_device_train_batch_size": 8, "learning_rate": 2e-3, "use_cpu": True}
        settings |= {"save_strategy": "steps", "save_steps": 2, "logging_steps": 1, "disable_tqdm": True}
        settings |= {"lr_scheduler_type": "constant", "report_to": "none", "bf16": False}
        arguments = SFTConfig(str(folder), activation_checkpointing=False, **settings)
        technique_ = NEW[technique](references)
        data = world.demonstrations(64)
        trainer = SFTTrainer(model, arguments, train_dataset=data, processing_class=tokenizer, callbacks=[technique_])
        trainer.train(resume_from_checkpoint=resume)
        return weights(model)

    go(tmp_path / "parts", 2)
    assert same(go(tmp_path / "whole", 5), go(tmp_path / "parts", 5, resume=True))


@pytest.mark.parametrize("technique", NEW)
def test_accumulated_batches_make_one_step(train, world, references, technique):
    made = NEW[technique](references)
    run, _ = train(made, data=world.demonstrations(64), batch_size=4, gradient_accumulation_steps=2)
    assert run.status == "completed" and len(run.history) == 4
    logged = {"ewc": "ewc_penalty", "confidence": "confidence"}.get(technique, "conflict_rate")
    assert run.history[logged].notna().all()


@pytest.mark.parametrize("technique", [name for name in NEW if name != "confidence"])
def test_they_know_no_objective(train, world, references, technique):
    for objective, data in (("dpo", world.preferences(32)), ("contrastive", wb.Portraits(world).pairs(16))):
        assert train(NEW[technique](references), objective, data, steps=2)[0].status == "completed"


def test_what_they_are_is_recorded(train, references):
    recorded = [train(make(references), steps=1)[0].record for make in NEW.values()]
    settings = [{"technique": r["parameters"]["technique"], **r["parameters"]["techniques"]} for r in recorded]
    assert [s["technique"] for s in settings] == ["ewc", "pcgrad", "safegrad", "safegrad", "confidence_weighting"]
    assert settings[0]["ewc"]["strength"] == 10 and recorded[0]["techniques"]["ewc"]["fisher_mean"] > 0
    assert (settings[3]["safegrad"]["loss"], settings[1]["pcgrad"]["weight"]) == ("kl", 1)
    assert settings[4]["confidence_weighting"] == {"power": 2, "normalise": True}
    assert len({r["parameters_hash"] for r in recorded}) == len(NEW)
    for record in recorded[:4]:
        assert {f"{record['parameters']['technique']}/reference/{domain}" for domain in references} <= set(
            record["data"]
        )


# --- elastic weight consolidation -------------------------------------------------------------------------------------


def test_the_penalty_and_its_gradient_are_those_of_the_formula(micro, references):
    model, tokenizer = micro
    ewc = wb.EWC(references, 3.0, n_samples=8)
    state = SimpleNamespace(global_step=0)
    ewc.on_train_begin(SimpleNamespace(deepspeed=None), state, None, model, processing_class=tokenizer)
    start = weights(model)
    assert flat(ewc.fisher).mean().item() == pytest.approx(1, rel=1e-5) and flat(ewc.fisher).min() >= 0
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.01 * torch.randn(p.shape, generator=generator)
    ewc.on_step_begin(None, state, None, model)
    drift, fisher = flat(weights(model)).double() - flat(start).double(), flat(ewc.fisher).double()
    pulled = flat({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(pulled.double(), 3 * fisher * drift, rtol=1e-4, atol=1e-7)
    penalty = ewc.measurements.history[0]["ewc_penalty"]
    assert penalty == pytest.approx((3 / 2 * fisher * drift.square()).sum().item(), rel=1e-4)


def test_the_penalty_starts_at_zero_counts_from_before_all_stages_and_is_scaled_with_the_loss(world, micro, tmp_path):
    model, tokenizer = micro
    ewc = wb.EWC(world.references(20), 5.0, n_samples=8)
    stages = [wb.Stage("sft", world.demonstrations(), 3, 8, 2e-3), wb.Stage("dpo", world.preferences(), 2, 8, 2e-4)]
    run = wb.pipeline(model, tokenizer, stages, ewc, runs_dir=tmp_path, progress=False)
    assert run.history.ewc_penalty.iloc[0] == 0 and (run.history.ewc_penalty.iloc[1:] > 1e-3).all()

    def pulled(**optimizer):
        model.zero_grad()
        state = SimpleNamespace(global_step=0)
        args = SimpleNamespace(deepspeed=None)
        ewc.on_train_begin(args, state, None, model, optimizer=SimpleNamespace(**optimizer))
        ewc.on_step_begin(args, state, None, model)
        return flat({name: p.grad for name, p in model.named_parameters()})

    scaler = SimpleNamespace(get_scale=lambda: 1024.0)
    torch.testing.assert_close(pulled(scaler=scaler), 1024 * pulled())


def test_weights_that_matter_to_abilities_are_held(train, world, references):
    """The claim of the method, on rows that its Fisher information never saw."""
    suites = {name: s for name, s in wb.suites_of(world, 40).items() if s.axis == "utility"}
    options = {"steps": 30, "learning_rate": 6e-3, "lr_scheduler_type": "linear", "suites": suites}
    assert train(wb.EWC(references, 10.0, n_samples=160), **options)[0].scores["utility"] > 0.95
    assert train(None, **options)[0].scores["utility"] < 0.8


def test_where_ewc_cannot_hold_it_refuses(micro, references, sft_checkpoint):
    model, tokenizer = micro
    with pytest.raises(ValueError, match="DeepSpeed and FSDP1 keep to themselves"):
        wb.EWC(references).on_train_begin(SimpleNamespace(deepspeed="zero3.json"), None, None, model)
    with pytest.raises(FileNotFoundError, match="not written with EWC"):
        state = SimpleNamespace(global_step=2)
        wb.EWC(references).on_train_begin(sft_checkpoint, state, None, model, processing_class=tokenizer)
    for match, settings in {
        "strength must not be negative": {"strength": -1.0},
        "got 1.0, 'both', 256 and 16": {"labels": "both"},
        "at least one row for each of the 4 domains": {"n_samples": 3},
    }.items():
        with pytest.raises(ValueError, match=match):
            wb.EWC(references, **settings)
    with pytest.raises(ValueError, match="non-empty dataset"):
        wb.EWC({})


@pytest.fixture
def sft_checkpoint(tmp_path):
    """The arguments of a training that would resume from a checkpoint that plain training wrote."""
    (tmp_path / "checkpoint-2").mkdir()
    return SimpleNamespace(output_dir=str(tmp_path), deepspeed=None)


# --- gradient surgery -------------------------------------------------------------------------------------------------


def test_the_step_is_that_of_pcgrad_by_hand(stepped, few, moved):
    """Algorithm 1 as printed, vector by vector."""
    surgery = wb.GradientSurgery(few, weight=2.0, n_samples=16)
    tasks = [flat(stepped(start=moved)), *[2.0 / 4 * r for r in references_at(moved, few)]]
    _, orders = surgery._tasks(4, 0)
    assert [sorted(order) for order in orders] == [[j for j in range(5) if j != i] for i in range(5)]
    total, n_conflicts = torch.zeros_like(tasks[0]), 0
    for task, order in zip(tasks, orders, strict=True):
        freed = task.clone()
        for j in order:
            dot = freed @ tasks[j]
            if dot < 0:
                freed, n_conflicts = freed - dot / (tasks[j] @ tasks[j]) * tasks[j], n_conflicts + 1
        total += freed
    assert n_conflicts >= 2
    found = flat(stepped(surgery, start=moved))
    assert (found - total).norm() < 1e-9 * total.norm()
    assert (found - sum(tasks)).norm() > 1e-3 * total.norm()


def test_the_step_is_that_of_safegrad_by_hand(stepped, few, moved):
    g, r = flat(stepped(start=moved)), torch.stack(references_at(moved, few)).mean(0)
    assert g @ r < 0
    by_hand = g - (g @ r) / (r @ r) * r + 0.5 * r
    found = flat(stepped(wb.GradientSurgery(few, "safegrad", weight=0.5, n_samples=16), start=moved))
    assert (found - by_hand).norm() < 1e-9 * by_hand.norm()


def test_the_kl_of_references_is_to_the_model_before_the_run_over_their_answers(micro, few):
    model, tokenizer = micro
    surgery = wb.GradientSurgery(few, "safegrad", loss="kl")
    surgery.base.keep(SimpleNamespace(deepspeed=None), SimpleNamespace(global_step=0), model)
    batch = pad_batch(encode(few["facts"], tokenizer), tokenizer.pad_token_id)
    assert surgery._divergence(model, batch).item() == pytest.approx(0, abs=1e-7)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    before = model(**inputs).logits
    with torch.no_grad():
        model.model.norm.weight += 0.2
    answered = F.pad(batch["labels"][:, 1:] != IGNORED, (0, 1))
    by_hand = kl_divergence(before, model(**inputs).logits, answered)
    assert surgery._divergence(model, batch).item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert by_hand > 1e-5


def test_nothing_pulls_at_the_start_where_the_kl_is_zero(stepped, few):
    plain, found = flat(stepped()), flat(stepped(wb.GradientSurgery(few, "safegrad", loss="kl", n_samples=16)))
    assert (found - plain).norm() < 1e-7 * plain.norm()


def test_rows_may_ride_and_orders_change_with_the_step(train, references):
    surgery = wb.GradientSurgery(references, references_in_batch=(4, 12))
    run, _ = train(surgery, batch_size=16)
    assert run.history.conflict_rate.notna().all()
    assert len({str(surgery._tasks(4, step)[1]) for step in range(20)}) > 10
    assert surgery._tasks(4, 7)[1] == wb.GradientSurgery(references)._tasks(4, 7)[1]


def test_surgery_is_clipped_as_a_whole(train, references):
    """SGD's step is the gradient that reached it."""
    start = weights(wb.load_model("micro", device="cpu")[0])
    surgery = wb.GradientSurgery(references, weight=4.0)
    options = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 1e-3, "steps": 1, "warmup_steps": 0}
    _, model = train(surgery, **options)
    moved = flat(weights(model)) - flat(start)
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_wrong_settings_of_surgery_are_refused(references):
    for match, settings in {
        "got 'gradvac' and 'cross_entropy'": {"rule": "gradvac"},
        "weight must not be negative": {"weight": -1.0},
        "leave references_in_batch out": {"loss": "kl", "references_in_batch": (4, 12)},
    }.items():
        with pytest.raises(ValueError, match=match):
            wb.GradientSurgery(references, **settings)


# --- A-GEM and GEM: recipes of GradientProjection ---------------------------------------------------------------------


def test_one_mixed_domain_on_the_gradient_side_in_conflict_is_a_gem(stepped, few, moved):
    """g̃ = g − (gᵀr/rᵀr) r where gᵀr < 0 (1812.00420, equation 11), over all parameters as one vector."""
    mixed = {"memory": concatenate_datasets(list(few.values()))}
    g, (r,) = flat(stepped(start=moved)), references_at(moved, mixed)
    assert g @ r < 0
    by_hand = g - (g @ r) / (r @ r) * r
    settings = {"side": "gradient", "when": "conflict", "scope": "global", "refresh": 1, "n_samples": 16}
    found = flat(stepped(wb.GradientProjection(mixed, **settings), start=moved))
    assert (found - by_hand).norm() < 1e-9 * g.norm()


def test_several_domains_are_the_quadratic_program_of_gem(stepped, few, moved):
    """The nearest g̃ with Rᵀg̃ ≥ 0 (1706.08840, equation 8), found here by its own conditions."""
    settings = {"side": "gradient", "when": "conflict", "scope": "global", "refresh": 1, "n_samples": 16}
    g, references = flat(stepped(start=moved)), torch.stack(references_at(moved, few))
    found = flat(stepped(wb.GradientProjection(few, **settings), start=moved))
    slopes = references @ found / references.norm(dim=1) / g.norm()
    assert ((references @ g) < 0).any() and slopes.min() > -1e-9
    dual = nonnegative_qp((references @ references.T)[None], -(references @ g)[None])[0]
    assert (found - g - references.T @ dual).norm() < 1e-8 * g.norm()
    assert (dual * slopes).abs().max() < 1e-9 * dual.max()  # only what touches its bound pushes


# --- confidence weighting ---------------------------------------------------------------------------------------------


def test_weights_of_rows_by_hand():
    log_probs = torch.tensor([[0.5, 0.25, 1.0], [0.1, 0.1, 0.9]]).log()
    likelihood = row_likelihood(log_probs, torch.tensor([[True, True, False], [True, True, False]]))
    torch.testing.assert_close(likelihood.exp(), torch.tensor([0.125**0.5, 0.1]))
    torch.testing.assert_close(row_weights(likelihood, 2.0, False), torch.tensor([0.125, 0.01]))
    torch.testing.assert_close(row_weights(likelihood, 2.0, True), torch.tensor([0.125, 0.01]) / 0.0675)
    assert torch.equal(row_weights(likelihood, 0.0, True), torch.ones(2))
    tiny = torch.tensor([-200.0, -201.0])  # neither of which has a confidence that float32 could hold
    torch.testing.assert_close(row_weights(tiny, 1.0, True), 2 * torch.tensor([0.0, -1.0]).softmax(0))


def by_hand(world, objective, weigh):
    """The gradient of the first step in float64, each row's own times its weight."""
    model, tokenizer = wb.load_model("micro", device="cpu", dtype="float64")
    rows = list(world.demonstrations(ROWS) if objective == "sft" else world.preferences(ROWS))
    sides = [encode([{"prompt": r["prompt"], "completion": r[side]} for r in rows], tokenizer)
             for side in (("completion",) if objective == "sft" else ("chosen", "rejected"))]  # fmt: skip
    batches = [pad_batch(side, tokenizer.pad_token_id) for side in sides]

    def log_likelihoods(batch):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        labels = batch["labels"][:, 1:]
        picked = logits.log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
        return (picked * (labels != IGNORED)).sum(1), (labels != IGNORED).sum(1)

    likelihoods, counts = zip(*map(log_likelihoods, batches), strict=True)
    row_weights_ = weigh((likelihoods[0].detach() / counts[0]).exp())
    if objective == "sft":
        loss = -(row_weights_ * likelihoods[0]).sum() / counts[0].sum()
    else:
        reference = [likelihood.detach() for likelihood in likelihoods]
        margin = (likelihoods[0] - reference[0]) - (likelihoods[1] - reference[1])
        loss = -(row_weights_ * F.logsigmoid(0.1 * margin)).mean()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return flat(dict(zip(dict(model.named_parameters()), gradients, strict=True)))


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_each_rows_gradient_is_weighed_by_hand(stepped, world, objective, normalise):
    def weigh(confidence):
        weights_ = confidence**0.5
        return weights_ / weights_.mean() if normalise else weights_

    found = flat(stepped(wb.ConfidenceWeighting(0.5, normalise), objective))
    expected, plain = by_hand(world, objective, weigh), by_hand(world, objective, torch.ones_like)
    torch.testing.assert_close(flat(stepped(None, objective)), plain, rtol=1e-4, atol=1e-5 * plain.abs().max().item())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    assert (expected - plain).norm() > 0.02 * plain.norm()


def test_the_logged_loss_stays_that_of_plain_training_and_the_confidence_rises(train):
    plain, _ = train(steps=8)
    run, model = train(wb.ConfidenceWeighting(1.0), steps=8)
    assert run.history.loss.iloc[0] == plain.history.loss.iloc[0]
    assert 0 < run.history.confidence.iloc[0] < 0.01 < run.history.confidence.iloc[-1] < 1
    assert not model._forward_hooks


def test_confidence_weighting_refuses_what_it_cannot_weigh(train, world):
    with pytest.raises(ValueError, match="got ContrastiveConfig"):
        train(wb.ConfidenceWeighting(), "contrastive", wb.Portraits(world).pairs(16))
    with pytest.raises(ValueError, match="got SFTConfig with packing=True"):
        train(wb.ConfidenceWeighting(), packing=True)
    with pytest.raises(RuntimeError, match="saw none of this step's rows"):
        train(wb.ConfidenceWeighting(), label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match="power must not be negative"):
        wb.ConfidenceWeighting(-1)


def test_seeds_of_surgery_are_its_own(references):
    state = random.getstate()
    wb.GradientSurgery(references)._tasks(4, 3)
    assert random.getstate() == state
