"""LoRA as a technique: one adapter over all stages, plain weights wherever the model is judged, merged or saved."""

import pytest
import torch
from conftest import same, weights
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

import workbench as wb
from workbench.alignment.techniques import Technique

OPTIONS = {"steps": 6, "learning_rate": 1e-2}


def moved(model):
    start = weights(wb.load_model("micro", device="cpu")[0])
    return {name: weight - start[name] for name, weight in weights(model).items()}


def rank(change):
    values = torch.linalg.svdvals(change.double())
    return int((values > 1e-4 * values[0]).sum())


class Interrupt(TrainerCallback, Technique):
    """Ctrl-C at the end of a step."""

    name = "interrupt"

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_the_model_comes_back_plain_with_a_step_of_low_rank_in_its_linear_layers(train):
    run, model = train(wb.LoRA(rank=3), **OPTIONS)
    assert list(weights(model)) == list(weights(wb.load_model("micro", device="cpu")[0]))
    assert all(p.requires_grad for p in model.parameters()) and not hasattr(model, "peft_config")
    for name, change in moved(model).items():
        linear = change.ndim == 2 and "embed" not in name
        assert (rank(change) == 3) if linear else not change.any(), name
    shapes = [change.shape for name, change in moved(model).items() if "proj" in name]
    assert run.record["techniques"]["lora"] == {"n_trained": sum(3 * sum(shape) for shape in shapes)}
    settings = {"rank": 3, "alpha": 16, "dropout": 0.0, "target_modules": "all-linear"}
    assert run.record["parameters"]["techniques"]["lora"] == settings


def test_the_step_is_alpha_over_rank_times_the_product_of_the_factors(micro):
    model, tokenizer = micro
    lora = wb.LoRA(rank=4, alpha=12, target_modules=["q_proj"])
    lora.prepare(model, seed=0)
    factors = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[4] for name in factors} == {"q_proj"} and len(factors) == 4
    ids = torch.arange(5, 17)[None]
    before = model(input_ids=ids).logits
    assert torch.equal(before, wb.load_model("micro", device="cpu")[0](input_ids=ids).logits)  # B is zero
    with torch.no_grad():
        for p in factors.values():
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    adapted = model(input_ids=ids).logits
    a, b = (factors[f"model.layers.1.self_attn.q_proj.lora_{side}.default.weight"].detach().clone() for side in "AB")
    lora.deploy(model, tokenizer, {})
    torch.testing.assert_close(moved(model)["model.layers.1.self_attn.q_proj.weight"], 12 / 4 * b @ a)
    torch.testing.assert_close(model(input_ids=ids).logits, adapted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(adapted, before, atol=1e-2)
    lora.withdraw(model, tokenizer)
    assert torch.equal(model(input_ids=ids).logits, adapted)


def test_evaluating_along_the_way_changes_nothing(train, world):
    suites = {"facts": wb.suites_of(world, 10)["facts"]}
    for others in ([], [wb.Merge(0.5)]):
        _, once = train([wb.LoRA(), *others], suites=suites, **OPTIONS)
        run, often = train([wb.LoRA(), *others], suites=suites, eval_every=2, **OPTIONS)
        assert same(weights(once), weights(often))
        assert list(run.history[run.history.evaluation].step) == [0, 2, 4, 6]


def test_sft_then_dpo_train_one_adapter(world, micro, tmp_path):
    model, tokenizer = micro
    stages = [wb.Stage("sft", world.demonstrations(), 3, 8, 1e-2), wb.Stage("dpo", world.preferences(32), 3, 8, 5e-3)]
    run = wb.pipeline(model, tokenizer, stages, wb.LoRA(rank=2), runs_dir=tmp_path, progress=False)
    assert {rank(change) for name, change in moved(model).items() if "proj" in name} == {2}
    assert run.history.loss.iloc[3] == pytest.approx(0.6931, abs=1e-4)  # DPO starts where policy = reference
    assert run.history.loss.iloc[-1] < 0.69


def test_merging_is_of_whole_weights_not_of_factors(train, micro):
    start = weights(micro[0])
    adapted = weights(train(wb.LoRA(), **OPTIONS)[1])
    assert same(weights(train([wb.LoRA(), wb.Merge(1.0)], **OPTIONS)[1]), adapted)
    run, model = train([wb.Merge(0.25), wb.LoRA()], **OPTIONS)  # LoRA comes first, wherever it stands
    assert run.record["parameters"]["technique"] == "lora+merge"
    assert same(weights(model), {name: torch.lerp(start[name], adapted[name], 0.25) for name in start})
    assert same(weights(train([wb.LoRA(), wb.Merge([0.0, 1.0])], **OPTIONS)[1]), {
        name: (start if ".layers.0." in name else adapted)[name] for name in start
    })  # fmt: skip


@pytest.mark.parametrize("side", ["update", "metric"])
def test_projected_factors_do_not_leak(train, references, side):
    projection = wb.GradientProjection(references, side=side, refresh=1, n_samples=16)
    run, model = train([wb.LoRA(rank=4), projection, wb.Merge(0.9)], **OPTIONS)
    assert run.record["parameters"]["technique"] == f"lora+{projection.name}+merge"
    assert all("lora_" in name for block in projection.subspace.blocks.values() for name in block.parameters)
    leakage = [row["leakage"] for row in projection.history]
    assert max(leakage) < 1e-5 and run.history.leakage.notna().all()
    assert rank(moved(model)["model.layers.0.mlp.up_proj.weight"]) == 4


def test_projection_and_merging_combine_without_adapters(train, references, micro):
    start = weights(micro[0])
    projected = [wb.GradientProjection(references, refresh=1, n_samples=16) for _ in range(2)]
    alone, (_, merged) = weights(train(projected[0])[1]), train([projected[1], wb.Merge(0.9)])
    assert same(weights(merged), {name: torch.lerp(start[name], alone[name], 0.9) for name in start})
    assert max(row["leakage"] for row in projected[1].history) < 1e-6


@pytest.mark.parametrize(
    "make",
    [
        lambda r: wb.EWC(r, n_samples=8),
        lambda r: wb.KLToBase(r, n_rows=4),
        lambda r: wb.GradientSurgery(r, "safegrad", loss="kl", n_samples=8),
        lambda r: wb.GradientProjection(r, side="gradient", references_in_batch=(4, 12)),
        lambda r: wb.ConfidenceWeighting(),
    ],
    ids=["ewc", "kl", "safegrad", "riding", "confidence"],
)
def test_other_techniques_act_on_the_factors(train, references, make):
    other = make(references)
    run, model = train([wb.LoRA(rank=2), other], steps=3, batch_size=16)
    assert run.record["parameters"]["technique"] == f"lora+{other.name}"
    assert not moved(model)["model.embed_tokens.weight"].any()


def test_an_interrupted_run_leaves_a_plain_model_with_what_was_learned(world, micro, tmp_path):
    model, tokenizer = micro
    names = list(weights(model))
    with pytest.raises(KeyboardInterrupt):
        techniques = [wb.LoRA(rank=2), Interrupt(3)]
        wb.align(model, tokenizer, world.demonstrations(), technique=techniques, runs_dir=tmp_path, progress=False)
    assert list(weights(model)) == names and all(p.requires_grad for p in model.parameters())
    assert rank(moved(model)["model.layers.0.mlp.up_proj.weight"]) == 2
    assert list(wb.load_runs(tmp_path).status) == ["interrupted"]


def test_factors_start_from_the_runs_seed_and_leave_training_the_random_state(train):
    _, model = train(wb.LoRA(), steps=1)
    assert same(weights(model), weights(train(wb.LoRA(), steps=1)[1]))
    state = torch.get_rng_state()
    starts = []
    for seed in (0, 1):
        other, _ = wb.load_model("micro", device="cpu")
        wb.LoRA().prepare(other, seed)
        starts.append(weights(other)["model.layers.0.mlp.up_proj.lora_A.default.weight"])
    assert not torch.equal(*starts) and torch.equal(state, torch.get_rng_state())


def test_factors_beside_sixteen_bit_weights_have_thirty_two(world, tmp_path):
    model, tokenizer = wb.load_model("micro", device="cpu", dtype="bfloat16")
    lora = wb.LoRA(rank=2)
    lora.prepare(model, 0)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    lora.release(model)
    run = wb.align(
        model, tokenizer, world.demonstrations(), technique=wb.LoRA(rank=2), steps=2, runs_dir=tmp_path, progress=False
    )
    assert run.status == "completed" and {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_reaches_the_factors(train, reentrant):
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    plain, checkpointed = train(wb.LoRA(), **OPTIONS)[1], train(wb.LoRA(), **OPTIONS, **options)[1]
    for name, change in moved(plain).items():
        torch.testing.assert_close(moved(checkpointed)[name], change, rtol=0, atol=1e-4)


def test_a_resumed_training_goes_on_bit_for_bit(world, tmp_path):
    def go(folder, steps, resume=False):
        model, tokenizer = wb.load_model("micro", device="cpu")
        lora = wb.LoRA()
        lora.prepare(model, seed=0)
        settings = {"max_steps": steps, "learning_rate": 1e-2, "use_cpu": True, "save_strategy": "steps"}
        settings |= {"save_steps": 2, "report_to": "none", "bf16": False, "disable_tqdm": True}
        arguments = SFTConfig(str(folder), activation_checkpointing=False, lr_scheduler_type="constant", **settings)
        data = world.demonstrations(64)
        SFTTrainer(model, arguments, train_dataset=data, processing_class=tokenizer).train(
            resume_from_checkpoint=resume
        )
        lora.release(model)
        return weights(model)

    go(tmp_path / "parts", 2)
    assert same(go(tmp_path / "whole", 5), go(tmp_path / "parts", 5, resume=True))


def test_a_sharded_model_is_refused(micro, monkeypatch):
    monkeypatch.setattr(torch.nn.Parameter, "to_local", lambda p: p, raising=False)  # the mark of a sharded parameter
    with pytest.raises(ValueError, match=r"which sharded models \(FSDP\) have not"):
        wb.LoRA().prepare(micro[0], 0)


def test_what_cannot_take_adapters_is_refused_before_a_run_begins(train, micro, world, tmp_path):
    from peft import LoraConfig, get_peft_model

    model, tokenizer = micro
    with pytest.raises(ValueError, match=r"Target modules .* not found"):
        train(wb.LoRA(target_modules=["query"]))
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    for adapted in (wrapped, model):
        with pytest.raises(ValueError, match="this one has some already"):
            wb.align(adapted, tokenizer, world.demonstrations(), technique=wb.LoRA(), runs_dir=tmp_path)
    for settings in ({"rank": 0}, {"alpha": 0}, {"dropout": 1.0}):
        with pytest.raises(ValueError, match="rank and alpha must be at least 1"):
            wb.LoRA(**settings)
    assert not list(tmp_path.iterdir())
