"""The constraint inside real trainers: exact for every optimizer and scope, in step with everything else they do."""

import json
import math
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from conftest import same, weights
from transformers import TrainerCallback

import workbench as wb
from workbench.alignment.restoring import Restore
from workbench.corpora.encoding import encode, pad_batch


@pytest.mark.parametrize("objective", ["sft", "dpo"])
@pytest.mark.parametrize("scope", ["tensor", "layer", "global"])
def test_on_the_update_side_nothing_leaks(train, references, objective, scope):
    projection = wb.GradientProjection(references, rank=4, scope=scope, side="update", refresh=2, n_samples=16)
    train(projection, objective)
    history = pd.DataFrame(projection.history)
    assert list(history.step) == [1, 2, 3, 4]
    assert history.leakage.max() < 1e-6  # rounding of float32 parameters against a step of 1e-3
    assert (history.removed_energy > 2 * history.random_floor**2).all()


OPTIMIZERS = {
    "adamw": {"optim": "adamw_torch"},
    "adamw fused": {"optim": "adamw_torch_fused"},
    "adamw plain": {"optim": "adamw_torch", "optim_args": "foreach=False"},
    "sgd momentum": {"optim": "sgd", "optim_args": "momentum=0.9", "learning_rate": 0.5},
    "adafactor": {"optim": "adafactor"},
}


@pytest.mark.parametrize("side", ["update", "metric"])
@pytest.mark.parametrize("scope", ["tensor", "layer", "global"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_optimizer_leaks_in_float64(world, references, optimizer, scope, side, tmp_path):
    model, tokenizer = wb.load_model("micro", device="cpu", dtype="float64")
    projection = wb.GradientProjection(references, side=side, scope=scope, refresh=2, n_samples=16)
    options = {"steps": 3, "learning_rate": 1e-3, "weight_decay": 0.1, "runs_dir": tmp_path, "progress": False}
    options |= OPTIMIZERS[optimizer]
    wb.align(model, tokenizer, world.demonstrations(), technique=projection, **options)
    leakage = [row["leakage"] for row in projection.history if not math.isnan(row["leakage"])]
    assert len(leakage) >= 2 and max(leakage) < 1e-12


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_optimizer_leaks_in_float32(train, references, optimizer):
    projection = wb.GradientProjection(references, refresh=1, n_samples=16)
    train(projection, **{"learning_rate": 2e-3, **OPTIMIZERS[optimizer]})
    assert max(row["leakage"] for row in projection.history) < 1e-6


def test_on_the_gradient_side_adam_leaks_and_momentum_free_sgd_does_not(train, references):
    def leakage(optim, learning_rate):
        projection = wb.GradientProjection(references, side="gradient", refresh=1, n_samples=16)
        train(projection, optim=optim, learning_rate=learning_rate)
        return projection.history[0]["leakage"]

    assert leakage("sgd", 0.1) < 1e-5
    assert leakage("adamw_torch", 2e-3) > 0.03


@pytest.mark.parametrize("side", ["gradient", "update", "none"])
def test_rank_zero_and_measuring_alone_train_bit_for_bit_like_no_callback(train, references, side):
    _, plain = train()
    rank = None if side == "none" else 0
    _, projected = train(wb.GradientProjection(references, rank=rank, side=side, refresh=1, n_samples=8))
    assert same(weights(plain), weights(projected))


def test_the_constraint_acts_once_an_optimizer_step_under_accumulation(train, references):
    projection = wb.GradientProjection(references, refresh=1, n_samples=16)
    train(projection, batch_size=4, gradient_accumulation_steps=4)
    assert [row["step"] for row in projection.history] == [1, 2, 3, 4]
    assert max(row["leakage"] for row in projection.history) < 1e-6


def test_it_works_by_itself_in_a_trainer_of_transformers(micro, world, references, tmp_path):
    from transformers import Trainer, TrainingArguments

    model, tokenizer = micro
    projection = wb.GradientProjection(references, refresh=1, n_samples=16)
    arguments = {
        "output_dir": str(tmp_path),
        "max_steps": 2,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    Trainer(
        model=model,
        args=TrainingArguments(
            **arguments, remove_unused_columns=False, learning_rate=4e-3, lr_scheduler_type="constant"
        ),
        train_dataset=encode(world.demonstrations(), tokenizer),
        data_collator=lambda rows: pad_batch(rows, tokenizer.pad_token_id),
        processing_class=tokenizer,
        callbacks=[projection],
    ).train()
    assert len(projection.history) == 2 and projection.history[-1]["leakage"] < 1e-6


def test_with_lora_only_the_factors_are_constrained(world, references, tmp_path):
    from peft import LoraConfig, get_peft_model

    model, tokenizer = wb.load_model("micro", device="cpu")
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    projection = wb.GradientProjection(references, refresh=1, n_samples=16)
    options = {"steps": 3, "learning_rate": 1e-2, "runs_dir": tmp_path, "progress": False}
    wb.align(model, tokenizer, world.demonstrations(), technique=projection, **options)
    assert all("lora_" in name for block in projection.subspace.blocks.values() for name in block.parameters)
    assert projection.history[-1]["leakage"] < 1e-6


def test_sixteen_bit_weights_are_warned_of(world, references, tmp_path):
    model, tokenizer = wb.load_model("micro", device="cpu", dtype="bfloat16")
    projection = wb.GradientProjection(references, refresh=1, n_samples=16)
    with pytest.warns(UserWarning, match="16 bits"):
        wb.align(
            model, tokenizer, world.demonstrations(), technique=projection, steps=1, runs_dir=tmp_path, progress=False
        )


def test_more_directions_than_domains_come_from_mini_batches(train, references):
    projection = wb.GradientProjection(references, rank=6, refresh=1, n_samples=16)
    train(projection, steps=1)
    assert len(projection.subspace.provenance["domains"]) == 8
    assert {block.rank for block in projection.subspace.blocks.values()} == {6}


def test_projecting_protects_the_references_better_than_not_projecting(train, world, references):
    """The claim of the method, on rows that no reference gradient saw."""

    def kept(technique):
        suites = {name: s for name, s in wb.suites_of(world).items() if s.axis == "utility"}
        run, _ = train(technique, steps=30, learning_rate=6e-3, suites=suites, seed=1)
        return run.scores["utility"]

    assert kept(wb.GradientProjection(references, rank=4, refresh=1)) > kept(None) + 0.03


# --- what a trainer does besides -------------------------------------------------------------------------------------


@pytest.fixture
def sft(world, tmp_path):
    """A plain SFTTrainer around a fresh micro model, as a user's script would have it."""
    from trl import SFTConfig, SFTTrainer

    def build(*callbacks, output="out", **options):
        model, tokenizer = wb.load_model("micro", device="cpu")
        settings = {"max_steps": 4, "per_device_train_batch_size": 8, "learning_rate": 2e-3, "logging_steps": 1}
        settings |= {"lr_scheduler_type": "constant", "use_cpu": True, "bf16": False, "report_to": "none"}
        settings |= {"save_strategy": "no", "disable_tqdm": True, "activation_checkpointing": False, **options}
        arguments = SFTConfig(output_dir=str(tmp_path / output), **settings)
        return SFTTrainer(
            model=model,
            args=arguments,
            train_dataset=world.demonstrations(),
            processing_class=tokenizer,
            callbacks=list(callbacks),
        )

    return build


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing_but_rounding(sft, references, reentrant):
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    found = []
    for extra in ({}, options):
        projection = wb.GradientProjection(references, refresh=2, n_samples=16)
        trainer = sft(projection, optim="sgd", **{"learning_rate": 0.3, **extra})
        trainer.train()
        found.append(weights(trainer.model))
        assert max(row["leakage"] for row in projection.history) < 1e-6
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight, rtol=0, atol=1e-6)


def test_under_bfloat16_autocast_the_constraint_is_as_exact(sft, references):
    projection = wb.GradientProjection(references, refresh=1, n_samples=16)
    trainer = sft(projection, bf16=True)
    trainer.train()
    assert max(row["leakage"] for row in projection.history) < 1e-6
    assert next(trainer.model.parameters()).dtype == torch.float32


class Norms(TrainerCallback):
    """The length of the gradient that reaches the optimizer."""

    def __init__(self):
        self.norms = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.norms.append(torch.stack([p.grad.norm() for p in model.parameters()]).norm().item())


def test_the_gradient_is_projected_before_it_is_clipped_unless_told_otherwise(sft, references):
    limit = 1e-3  # far below any gradient here, so that both clip
    lengths = {}
    for before in (True, False):
        norms = Norms()
        projection = wb.GradientProjection(references, side="gradient", before_clipping=before, refresh=1, n_samples=16)
        trainer = sft(projection, norms, max_grad_norm=limit)
        trainer.train()
        assert trainer.args.max_grad_norm == limit
        assert all(row["grad_norm"] > limit for row in trainer.state.log_history[:-1])
        lengths[before] = (norms.norms, [row["removed_energy"] for row in projection.history])
    assert lengths[True][0] == pytest.approx([limit] * 4, rel=1e-3)
    norms, removed = lengths[False]
    assert norms == pytest.approx([limit * math.sqrt(1 - share) for share in removed], rel=1e-3)


def test_chosen_parameters_are_constrained_and_the_others_train_freely(train, references):
    projection = wb.GradientProjection(references, target_parameters="*mlp*", refresh=1, n_samples=16)
    train(projection)
    assert {name for block in projection.subspace.blocks for name in [block]} == {
        name for name in dict(wb.load_model("micro", device="cpu")[0].named_parameters()) if "mlp" in name
    }
    assert max(row["leakage"] for row in projection.history) < 1e-6
    with pytest.raises(ValueError, match=r"matches none of the 20 trained parameters, such as .*embed_tokens"):
        train(wb.GradientProjection(references, target_parameters="lora*"))


def test_a_full_rank_basis_freezes_the_block(train, references, micro):
    start = weights(micro[0])
    projection = wb.GradientProjection(
        references, target_parameters="*layernorm*", rank=64, gradients_per_domain=20, n_samples=80, refresh=1
    )
    _, model = train(projection, steps=2)
    moved = {name: (weight - start[name]).norm().item() for name, weight in weights(model).items()}
    assert all((move < 1e-5) == ("layernorm" in name) for name, move in moved.items()), moved


class Outside(TrainerCallback):
    """Reference gradients and steps as seen from outside: on all reference rows, before and after each step."""

    def __init__(self, references, tokenizer):
        self.batches = {
            d: [pad_batch(encode(rows, tokenizer), tokenizer.pad_token_id)] for d, rows in references.items()
        }
        self.slopes, self.norms = [], []  # of each domain's loss along the step; of the gradient that is stepped on

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.norms.append(torch.stack([p.grad.norm() for p in model.parameters()]).norm().item())
        self.gradients = wb.reference_gradients(model, self.batches).tensors
        self.before = weights(model)

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        step = {name: p.detach() - self.before[name] for name, p in model.named_parameters()}
        length = torch.stack([s.norm() for s in step.values()]).norm()
        rows = [{n: g[k] for n, g in self.gradients.items()} for k in range(len(self.batches))]
        lengths = [torch.stack([g.norm() for g in row.values()]).norm() for row in rows]
        dots = [sum((g[n].double() * step[n].double()).sum() for n in step) for g in rows]
        self.slopes.append([(d / length / r).item() for d, r in zip(dots, lengths, strict=True)])


@pytest.mark.parametrize("when", ["always", "conflict"])
@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_seen_from_outside_no_reference_loss_moves_or_none_rises(sft, world, when, scope):
    """Every draw takes all rows, so that the basis is that of gradients which are taken here anew."""
    few = world.references(4)
    projection = wb.GradientProjection(few, when=when, scope=scope, refresh=1, n_samples=16)
    trainer = sft(projection, optim="adamw_torch")
    trainer.add_callback(outside := Outside(few, trainer.processing_class))
    trainer.train()
    slopes = torch.tensor(outside.slopes)
    assert slopes.max() < 2e-6
    if when == "always":
        assert slopes.abs().max() < 2e-6
    else:
        assert slopes.min() < -1e-3  # what does no harm may go on
        assert all(0 < row["conflict_rate"] <= 1 for row in projection.history)


@pytest.mark.parametrize("place", [{"basis_dtype": "bfloat16"}, {"basis_device": "disk"}], ids=str)
def test_a_basis_in_16_bits_or_on_disk_holds_the_constraint_as_exactly(train, references, place):
    projection = wb.GradientProjection(references, refresh=2, n_samples=16, **place)
    train(projection)
    assert max(row["leakage"] for row in projection.history) < 1e-6


# --- refreshing ------------------------------------------------------------------------------------------------------


def test_a_fixed_interval_refreshes_when_due_and_measures_the_drift(train, references):
    projection = wb.GradientProjection(references, refresh=2, n_samples=16)
    train(projection, steps=5)
    history = pd.DataFrame(projection.history)
    assert list(history.refresh_seconds > 0) == [True, False, True, False, True]
    assert list(history.drift.notna()) == [False, False, True, False, True]
    assert history.drift.dropna().between(0, 1).all()


class Bases(TrainerCallback):
    """The basis that held at each step."""

    def __init__(self, projection):
        self.projection, self.seen = projection, []

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.append(self.projection.subspace)


def test_drift_triggers_a_refresh_and_where_nothing_moves_nothing_is_refreshed(sft, references):
    def n_bases(learning_rate):
        projection = wb.GradientProjection(references, refresh="drift", n_samples=64)
        bases = Bases(projection)
        sft(projection, bases, max_steps=6, learning_rate=learning_rate).train()
        assert all(row["drift"] >= 0 for row in projection.history[1:])
        return len({id(basis) for basis in bases.seen})

    assert n_bases(6e-3) > 2
    assert n_bases(1e-9) <= 2  # probes are noisy


def test_a_small_domain_is_probed_with_the_rows_it_has(train, world):
    projection = wb.GradientProjection({"facts": world.references(4)["facts"]}, refresh=2, n_samples=16)
    train(projection)
    assert pd.DataFrame(projection.history).drift.notna().sum() == 1


def test_rolling_renews_one_domain_a_step_and_holds_the_constraint(train, references):
    projection = wb.GradientProjection(references, refresh="rolling", n_samples=16)
    train(projection, steps=6)
    assert max(row["leakage"] for row in projection.history) < 1e-6
    assert projection.subspace.domains == tuple(references)


def test_packed_references_give_the_same_training_and_are_refused_where_they_would_not(train, references, sft):
    found = []
    for packing in (False, True):
        projection = wb.GradientProjection(references, refresh=1, n_samples=32, packing=packing)
        _, model = train(projection, optim="sgd", learning_rate=0.3)
        found.append(weights(model))
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight, rtol=0, atol=1e-6)
    trainer = sft(wb.GradientProjection(references, packing=True))
    forward = trainer.model.forward
    trainer.model.forward = lambda *args, position_ids=None, **kwargs: forward(*args, **kwargs)  # blind to positions
    with pytest.raises(ValueError, match="packing=True is not exact for LlamaForCausalLM"):
        trainer.train()


# --- reference rows in the training batch ----------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["sft", "dpo"])
@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}], ids=["", "accumulated"])
def test_rows_that_ride_along_leave_training_as_it_is_and_give_a_fresh_basis(train, references, objective, options):
    """Measured alone, the training is that of the training rows; the losses it logs are theirs."""
    riding = wb.GradientProjection(references, side="none", references_in_batch=(4, 12))
    run, with_riders = train(riding, objective, batch_size=16, optim="sgd", learning_rate=0.1, **options)
    plain, without = train(None, objective, batch_size=4, optim="sgd", learning_rate=0.1, **options)
    assert list(run.history.loss) == pytest.approx(list(plain.history.loss), abs=1e-5)
    for name, weight in weights(without).items():
        torch.testing.assert_close(weights(with_riders)[name], weight, rtol=0, atol=1e-6)
    assert [row["step"] for row in riding.history] == [1, 2, 3, 4]
    exact = wb.GradientProjection(references, references_in_batch=(4, 12))
    train(exact, objective, batch_size=16, **options)
    assert max(row["leakage"] for row in exact.history) < 1e-6


def test_the_split_gives_the_gradients_of_passes_of_their_own(train, references):
    """The same rows, drawn by the same generator: the first step's gradient side is then the same."""
    found = []
    for options in ({"references_in_batch": (16, 12)}, {"n_samples": 12, "refresh": 1}):
        projection = wb.GradientProjection(references, side="gradient", **options)
        batch_size = 28 if "references_in_batch" in options else 16
        _, model = train(projection, steps=1, batch_size=batch_size, optim="sgd", learning_rate=0.5)
        found.append((weights(model), projection.history[0]["removed_energy"]))
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-4)
    for name, weight in found[0][0].items():
        torch.testing.assert_close(weight, found[1][0][name], rtol=0, atol=2e-6)


def test_the_batch_size_must_be_the_one_that_was_said(sft, references, train):
    with pytest.raises(ValueError, match=r"per_device_train_batch_size is 8\. Make them equal"):
        sft(wb.GradientProjection(references, references_in_batch=(4, 12))).train()
    with pytest.raises(ValueError, match="makes 16 rows a batch, got batch_size=8"):
        train(wb.GradientProjection(references, references_in_batch=(4, 12)), batch_size=8)


def test_what_cannot_be_split_is_named_and_takes_a_second_backward(world, references, tmp_path):
    model, tokenizer = wb.load_model("micro", device="cpu")
    model.config.attention_dropout = 0.1
    projection = wb.GradientProjection(references, references_in_batch=(4, 12))
    options = {"steps": 2, "batch_size": 16, "learning_rate": 2e-3, "runs_dir": tmp_path, "progress": False}
    with pytest.warns(UserWarning, match=r"cannot split .*dropout.* second backward"):
        wb.align(model, tokenizer, world.demonstrations(), technique=projection, **options)
    assert len(projection.history) == 2


@pytest.mark.parametrize("event", ["on_step_begin", "on_pre_optimizer_step", "on_step_end"])
def test_an_interrupted_training_leaves_model_and_settings_whole(world, references, tmp_path, event):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    class Stop(TrainerCallback):
        pass

    setattr(Stop, event, stop)
    model, tokenizer = wb.load_model("micro", device="cpu")
    projection = wb.GradientProjection(references, side="gradient", references_in_batch=(4, 12))
    projection.callbacks = lambda: [projection, Stop()]

    def state():
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
        return hooks, ["forward" in vars(m) for m in model.base_model.modules()]

    before = state()
    with pytest.raises(KeyboardInterrupt):
        options = {"batch_size": 16, "runs_dir": tmp_path, "progress": False}
        wb.align(model, tokenizer, world.demonstrations(), technique=projection, **options)
    assert state() == before
    projection.callbacks = lambda: [projection]
    run = wb.align(model, tokenizer, world.demonstrations(), technique=projection, steps=2, **options)
    assert run.history.grad_norm.notna().all()


def test_the_trainers_limit_survives_an_interruption(sft, references):
    class Stop(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    projection = wb.GradientProjection(references, side="gradient", n_samples=16)
    trainer = sft(projection, Stop(), max_grad_norm=0.7)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.args.max_grad_norm == 0.0
    projection.close()
    assert trainer.args.max_grad_norm == 0.7


# --- restoring -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restore", [0.5, Restore(2.0, tolerance=0.02)], ids=["fixed", "scaled"])
@pytest.mark.parametrize("options", [{"references_in_batch": (4, 12)}, {"refresh": 1, "n_samples": 16}], ids=str)
def test_restoring_undoes_drift_and_is_measured_against_the_start(train, references, restore, options):
    def rise(restore):
        projection = wb.GradientProjection(references, side="gradient", restore=restore, **options)
        train(projection, steps=25, batch_size=16, learning_rate=4e-3, seed=1)
        history = pd.DataFrame(projection.history)
        return history

    restored = rise(restore)
    violations = restored.filter(like="violation/")
    assert list(violations) == [f"violation/{domain}" for domain in references]
    assert violations.iloc[0].abs().max() < 1e-5  # at the start every loss is its own
    strength = restore.strength if isinstance(restore, Restore) else restore
    assert restored.restore_size.between(0, strength).all() and restored.restore_size.max() > 0
    free = rise(Restore(1e-9))
    assert violations.iloc[10:].mean().mean() < 0.5 * free.filter(like="violation/").iloc[10:].mean().mean()


def test_without_a_violation_no_restoring_step_is_taken():
    assert Restore(0.5).size(torch.tensor([-1.0, 0.0])) == 0
    assert Restore(0.5).size(torch.tensor([-1.0, 0.1])) == 0.5
    assert Restore(2.0, tolerance=0.02).size(torch.tensor([0.01, 0.0])) == pytest.approx(2 * 0.005 / 0.02)
    assert Restore(2.0, tolerance=0.02).size(torch.tensor([9.0, 0.0])) == 2
    with pytest.raises(ValueError, match="restore needs"):
        Restore(-1)


@pytest.mark.parametrize("option", [{"restore": 0.5}, {"when": "conflict"}], ids=str)
def test_what_needs_every_domains_gradient_refuses_a_basis_without_it(references, option):
    for rank in (2, 0.9, 6):
        with pytest.raises(ValueError, match="every domain's mean gradient in the basis"):
            wb.GradientProjection(references, rank=rank, n_samples=64, **option)
    wb.GradientProjection(references, rank=4, **option)


# --- the null space of activations -----------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_linear_layers_answer_reference_inputs_as_before(train, references, objective, micro):
    """With all their energy spanned, no layer's answer to an input that the references cause moves."""
    projection = wb.NullSpaceProjection(references, energy=1.0, n_samples=4)
    start = weights(micro[0])
    _, model = train(projection, objective, steps=3)
    moved = {name: weight - start[name] for name, weight in weights(model).items()}
    for name, block in projection.subspace.blocks.items():
        seen = (moved[name] @ block.basis.T).norm() / moved[name].norm().clamp(min=1e-12)
        assert seen < 1e-4 or moved[name].norm() < 1e-5, name
    assert moved["model.embed_tokens.weight"].norm() > 0.01  # trains freely
    assert max(row["leakage"] for row in projection.history) < 1e-4


def test_the_null_space_of_the_gradient_is_clipped_as_a_whole(sft, references):
    projection, norms = wb.NullSpaceProjection(references, side="gradient", n_samples=16), Norms()
    sft(projection, norms, max_grad_norm=1e-3).train()
    assert norms.norms == pytest.approx([1e-3] * 4, rel=1e-3)


def test_more_energy_leaves_less_to_learn_and_keeps_more(train, references):
    losses = []
    for energy in (0.5, 0.999):
        run, _ = train(wb.NullSpaceProjection(references, energy=energy), steps=20, learning_rate=4e-3)
        losses.append(run.history.loss.iloc[-1])
        assert run.record["parameters"]["techniques"]["null_space"]["energy"] == energy
    assert losses[0] < losses[1]
    with pytest.raises(ValueError, match=r"energy must lie in \(0, 1\], got 2"):
        wb.NullSpaceProjection(references, energy=2)


# --- logs and checkpoints --------------------------------------------------------------------------------------------


class Reporter(TrainerCallback):
    """Sees what W&B's or TensorBoard's callback would: it comes before the user's."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


def test_measurements_join_the_trainers_metrics_where_reports_see_them(sft, references):
    reporter = Reporter()
    projection = wb.GradientProjection(references, side="gradient", refresh=2, n_samples=16)
    trainer = sft(reporter, projection, max_steps=4, logging_steps=2)
    trainer.train()
    history = pd.DataFrame(projection.history)
    for logged in (reporter.logs, trainer.state.log_history):
        assert [row["leakage"] for row in logged[:2]] == [history.leakage[:2].mean(), history.leakage[2:].mean()]
        assert {"random_floor", "removed_energy", "conflict_rate", "refresh_seconds", "grad_norm"} <= set(logged[0])
        assert "drift" not in logged[0] and logged[1]["drift"] == history.drift[2]
        assert "leakage" not in logged[-1]  # the summary of the whole training


@pytest.mark.parametrize(
    "settings",
    [
        {"refresh": 3, "n_samples": 16},
        {"refresh": "drift", "n_samples": 16},
        {"refresh": "rolling", "n_samples": 16, "side": "gradient"},
        {"references_in_batch": (8, 8), "restore": Restore(2.0, 0.02), "side": "gradient"},
        {"refresh": 1, "n_samples": 16, "side": "metric", "restore": 0.3},
        {"energy": 0.9, "n_samples": 16},
    ],
    ids=["interval", "drift", "rolling", "riding", "metric", "null space"],
)
def test_a_resumed_training_goes_on_bit_for_bit(sft, references, settings):
    def projection():
        technique = wb.NullSpaceProjection if "energy" in settings else wb.GradientProjection
        return technique(references, **settings)

    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 5}
    whole = sft(uninterrupted := projection(), output="whole", **options)
    whole.train()
    first = sft(projection(), output="parts", **{**options, "max_steps": 2})
    first.train()
    second = sft(resumed := projection(), output="parts", **options)
    second.train(resume_from_checkpoint=True)
    assert same(weights(whole.model), weights(second.model))
    for row, other in zip(uninterrupted.history, resumed.history, strict=True):
        for frame in (row, other):
            frame.pop("refresh_seconds")
        assert json.dumps(row) == json.dumps(other)


def test_a_checkpoint_without_the_callbacks_state_is_refused(sft, references):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    sft(output="plain", **{**options, "max_steps": 2}).train()
    with pytest.raises(FileNotFoundError, match="not written with GradientProjection"):
        sft(wb.GradientProjection(references), output="plain", **options).train(resume_from_checkpoint=True)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "side", "reason"),
    [
        ({"optim": "galore_adamw_layerwise"}, "gradient", "steps inside it"),
        ({"optim": "schedule_free_adamw"}, "update", "second copy"),
        ({"optim": "adamw_torch", "deepspeed": "zero3.json"}, "update", "steps inside its backward"),
    ],
)
def test_where_it_cannot_hold_it_refuses_at_once(micro, references, arguments, side, reason):
    arguments, (model, tokenizer) = SimpleNamespace(**arguments), micro
    with pytest.raises(ValueError, match=reason):
        projection = wb.GradientProjection(references, side=side)
        projection.on_train_begin(arguments, None, None, model=model, processing_class=tokenizer)
