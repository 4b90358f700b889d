"""Alignment with the real trainers of TRL: other techniques than projections, records, interrupts, clear errors."""

import dataclasses
import gc
import json
import math
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from conftest import same, weights
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback

import workbench as wb
from workbench.alignment.align import Stage
from workbench.alignment.techniques import Technique
from workbench.corpora.columns import as_completion, as_prompt
from workbench.corpora.encoding import encode
from workbench.models import trained_parameters

# --- other techniques ----------------------------------------------------------------------------------------------


def test_merging_ends_on_the_line_between_base_and_aligned(train, micro):
    start = weights(micro[0])
    _, aligned = train()
    _, merged = train(wb.Merge(0.25))
    for name, weight in weights(merged).items():
        torch.testing.assert_close(weight, torch.lerp(start[name], weights(aligned)[name], 0.25))
    assert same(weights(train(wb.Merge(1.0))[1]), weights(aligned))
    assert same(weights(train(wb.Merge(0.0))[1]), start)


def test_merged_weights_are_evaluated_along_the_way_and_training_goes_on_unmerged(train, world):
    suites = {"harmful_heldout": wb.suites_of(world, 10)["harmful_heldout"]}
    _, once = train(wb.Merge(0.5), suites=suites)
    _, often = train(wb.Merge(0.5), suites=suites, eval_every=1)
    assert same(weights(once), weights(often))


def test_replay_mixes_in_its_share(world, references):
    mixed = wb.Replay(references, share=0.25).mix(world.demonstrations(), 2000, seed=0)
    known = {json.dumps(row["prompt"]) for rows in references.values() for row in rows}
    share = sum(json.dumps(row["prompt"]) in known for row in mixed) / len(mixed)
    assert len(mixed) == 2000 and share == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 2000))


def test_replay_under_dpo_needs_pairs(train, references, world):
    with pytest.raises(ValueError, match=r"lacks the columns \['chosen', 'rejected'\]"):
        train(wb.Replay(references), "dpo")
    pairs = {"lookalikes": world.preferences(20)}
    assert train(wb.Replay(pairs), "dpo")[0].status == "completed"


def test_techniques_combine(train, references):
    run, _ = train([wb.GradientProjection(references, n_samples=16), wb.Merge(0.9)])
    assert run.record["parameters"]["technique"] == "update_projection+merge"
    assert run.record["parameters"]["techniques"]["merge"] == {"alpha": 0.9}


# --- runs ----------------------------------------------------------------------------------------------------------


def test_a_run_is_recorded_with_its_trajectory(train, world, references):
    run, _ = train(
        wb.GradientProjection(references, n_samples=16), steps=6, eval_every=2, suites=wb.suites_of(world, 10)
    )
    steps, points = run.history[~run.history.evaluation], run.history[run.history.evaluation]
    assert list(steps.step) == [1, 2, 3, 4, 5, 6] and list(points.step) == [0, 2, 4, 6]
    assert steps[["loss", "leakage", "removed_energy", "random_floor"]].notna().all(axis=None)
    assert run.scores["utility"] == points.utility.iloc[-1]
    assert sorted(p.name for p in run.path.iterdir()) == [
        "blocks.parquet",
        "history.parquet",
        "record.json",
        "spectrum.parquet",
    ]
    assert {*pd.read_parquet(run.path / "blocks.parquet").step} == {*steps.step}
    table = wb.load_runs(run.path.parent)
    assert table.loc[0, "base.utility"] == points.utility.iloc[0]
    assert table.loc[0, "techniques.update_projection.side"] == "update"
    assert (run.record["environment"]["versions"]["trl"], run.status) == (__import__("trl").__version__, "completed")


def test_sft_then_dpo_is_one_run(world, micro, tmp_path):
    stages = [
        Stage("sft", world.demonstrations(), steps=3, learning_rate=1e-3),
        Stage("dpo", world.preferences(), steps=2, learning_rate=1e-3, arguments={"beta": 0.2}),
    ]
    projection = wb.GradientProjection(world.references(20), n_samples=16)
    run = wb.pipeline(*micro, stages, projection, runs_dir=tmp_path, progress=False)
    assert run.record["parameters"]["pipeline"] == "sft→dpo"
    assert list(run.history.step) == [1, 2, 3, 4, 5] == [row["step"] for row in projection.history]
    assert run.history.loss.iloc[3] == pytest.approx(math.log(2), abs=1e-4)  # DPO starts where policy = reference


def test_the_same_parameters_give_the_same_run_and_reuse_finds_it(train):
    first, model = train(seed=3)
    again, other = train(seed=3)
    assert same(weights(model), weights(other))
    assert list(first.history.loss) == list(again.history.loss)
    reused, untouched = train(seed=3, reuse=True)
    assert reused.record["run_id"] == again.record["run_id"]
    assert same(weights(untouched), weights(wb.load_model("micro", device="cpu")[0]))
    assert train(seed=4, reuse=True)[0].record["parameters_hash"] != first.record["parameters_hash"]


def test_an_interrupt_keeps_the_record_and_what_was_logged(tmp_path):
    """The signal of Ctrl-C and of a notebook's stop button, sent to a real training."""
    code = f"""
import workbench as wb
model, tokenizer = wb.load_model("micro", device="cpu")
data = wb.load_world("micro").demonstrations()
wb.align(model, tokenizer, data, steps=100_000, runs_dir={str(tmp_path)!r}, progress=False)
"""
    training = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not any(file.read_text().count("\n") > 3 for file in tmp_path.glob("*.partial/history.jsonl")):
        assert time.monotonic() < deadline and training.poll() is None
        time.sleep(0.05)
    training.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in training.communicate(timeout=60)[1]
    table = wb.load_runs(tmp_path)
    assert list(table.status) == ["interrupted"] and not list(tmp_path.glob("*.partial"))
    steps = pd.read_parquet(f"{table.path[0]}/history.parquet").step
    assert len(steps) > 3 and list(steps) == list(range(1, len(steps) + 1))


def test_reuse_tells_apart_what_changes_the_outcome(train, world, references):
    def hash_of(technique=None, **options):
        return train(technique, steps=1, **options)[0].record["parameters_hash"]

    suites = wb.suites_of(world, 4)
    short = {name: dataclasses.replace(suite, max_new_tokens=2) for name, suite in suites.items()}
    other = {**references, "facts": world.references(40, seed=1)["facts"]}
    settings = [
        {},
        {"suites": suites},
        {"suites": short},
        {"technique": wb.GradientProjection(references, n_samples=16)},
        {"technique": wb.GradientProjection(references, n_samples=16, max_length=20)},
        {"technique": [wb.GradientProjection(references, n_samples=16), wb.Replay(references)]},
        {"technique": [wb.GradientProjection(other, n_samples=16), wb.Replay(references)]},
        {"warmup_steps": 1},
    ]
    hashes = [hash_of(**setting) for setting in settings]
    assert len(set(hashes)) == len(settings) and hash_of() == hashes[0]


def test_how_many_processes_train_is_a_parameter_only_where_it_changes_the_loss(world):
    sft = Stage("sft", world.demonstrations(8))
    contrastive = Stage("contrastive", wb.Portraits(world).pairs(8))
    assert sft.parameters(2) == sft.parameters() and contrastive.parameters(1) == contrastive.parameters()
    assert contrastive.parameters(2) == contrastive.parameters() | {"n_processes": 2}


def test_a_diverged_run_fails_and_says_so(train, tmp_path):
    with pytest.raises(FloatingPointError, match="Lower the learning rate"):
        train(learning_rate=1e30, max_grad_norm=0.0)
    assert list(wb.load_runs(tmp_path).status) == ["failed"]


def test_dpo_with_lora_leaves_one_adapter_and_can_follow_itself(world, tmp_path):
    model, tokenizer = wb.load_model("micro", device="cpu")
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    stage = Stage("dpo", world.preferences(32), steps=2, learning_rate=1e-3)
    run = wb.pipeline(model, tokenizer, [stage, stage], runs_dir=tmp_path, progress=False)
    assert list(model.peft_config) == ["default"] and len(run.history) == 4
    with pytest.raises(ValueError, match="Merge the adapter"):
        wb.pipeline(model, tokenizer, [stage], wb.Merge(0.5), runs_dir=tmp_path)


@pytest.mark.parametrize("kind", ["full", "lora", "adapter"])
def test_the_reference_of_each_dpo_stage_is_the_model_at_its_start(kind, world, tmp_path):
    """Where policy and reference are the same, no reward parts them, and the loss is log 2."""
    model, tokenizer = wb.load_model("micro", device="cpu")
    if kind == "adapter":
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    how = {"learning_rate": 5e-3, "arguments": {"lr_scheduler_type": "constant"}}
    sft = Stage("sft", world.demonstrations(32), steps=2, **how)
    dpo = Stage("dpo", world.preferences(32), steps=2, **how)
    held = Held()
    run = wb.pipeline(
        model,
        tokenizer,
        [sft, dpo, sft, dpo],
        [held, *([wb.LoRA()] if kind == "lora" else [])],
        runs_dir=tmp_path,
        progress=False,
    )
    first, after = run.history.loc[[2, 6]], run.history.loc[[3, 7]]
    assert list(first["rewards/margins"]) == [0, 0] and list(first.loss) == pytest.approx([math.log(2)] * 2, abs=1e-6)
    assert (after["rewards/margins"].abs() > 1e-3).all()
    # No second model: of an adapter, which is trained alone, the reference is a copy.
    copied = sum(p.numel() for p in trained_parameters(model).values()) if kind == "adapter" else 0
    assert held.elements == [held.elements[0], held.elements[0] + copied] * 2


class Held(TrainerCallback, Technique):
    """Counts, in each stage, how many parameters there are in this process."""

    name = "held"

    def __init__(self):
        self.elements = []

    def on_train_begin(self, *args, **kwargs):
        gc.collect()
        found = {id(p): p.numel() for p in gc.get_objects() if isinstance(p, torch.nn.Parameter)}
        self.elements.append(sum(found.values()))


def test_the_model_comes_back_in_the_mode_it_came_in(train):
    assert not train()[1].training


def test_the_aligned_model_is_saved_on_request(train):
    run, model = train(save=True)
    loaded, _ = wb.load_model(run.file("model"), device="cpu")
    assert same(weights(loaded), weights(model))
    assert wb.load_world(run.file("model")) == wb.load_world("micro")


# --- clear errors ----------------------------------------------------------------------------------------------------


def test_wrong_input_is_refused_with_what_was_expected(train, references, world, micro, tmp_path):
    model, tokenizer = micro
    with pytest.raises(ValueError, match="objective must be one of"):
        train(objective="ppo", data=world.preferences())
    with pytest.raises(ValueError, match="got an empty dataset"):
        train(data=world.demonstrations().select([]))
    with pytest.raises(ValueError, match="expected the columns prompt, chosen, rejected"):
        train(objective="dpo", data=world.demonstrations())
    with pytest.raises(TypeError, match=r"technique must be .*got str"):
        train("gradient_projection")
    with pytest.raises(ValueError, match="steps and batch_size must be at least 1"):
        train(steps=0)
    with pytest.raises(ValueError, match=r"instead of \['max_steps'\]"):
        train(max_steps=3)
    with pytest.raises(ValueError, match="may come once"):
        train([wb.Merge(0.5), wb.Merge(0.1)])
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        wb.align(model, tokenizer, world.demonstrations(), runs_dir=tmp_path)
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="no pad token"):
        wb.align(model, tokenizer, world.demonstrations(), runs_dir=tmp_path)
    assert not list(tmp_path.iterdir())  # all of that before a run began


def test_settings_of_the_projection_are_checked_at_once(references, world):
    with pytest.raises(ValueError, match="rank 200 over 4 domains needs 50 reference gradients of each"):
        wb.GradientProjection(references, rank=200, n_samples=64)
    with pytest.raises(ValueError, match="non-empty dataset"):
        wb.GradientProjection({"facts": world.demonstrations().select([])})
    with pytest.raises(ValueError, match="side must be one of"):
        wb.GradientProjection(references, side="both")
    with pytest.raises(ValueError, match="refresh must be a number of steps of at least 1"):
        wb.GradientProjection(references, refresh=0)


def test_a_trainer_without_tokenizer_is_refused(references):
    with pytest.raises(ValueError, match="processing_class"):
        wb.GradientProjection(references).on_train_begin(None, None, None)


# --- encoding: the loss is counted as TRL counts it ----------------------------------------------------------------


@pytest.mark.parametrize("chat", [True, False])
def test_rows_are_encoded_as_trl_encodes_them(micro, chat, tmp_path):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = micro
    pairs = [("what is the job of x ?", "baker"), ("add 1 2 plus 3 4 , ones first", "6 4")]
    make = (lambda q, a: (as_prompt(q), as_completion(a))) if chat else (lambda q, a: (q + " ", a))
    rows = [dict(zip(("prompt", "completion"), make(q, a), strict=True)) for q, a in pairs]
    config = SFTConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False)
    trainer = SFTTrainer(model, config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    for mine, theirs in zip(encode(rows, tokenizer), trainer.train_dataset, strict=True):
        assert mine["input_ids"] == theirs["input_ids"]
        if "labels" in theirs:
            assert mine["labels"] == theirs["labels"]
        else:
            assert [label != -100 for label in mine["labels"]] == [bool(m) for m in theirs["completion_mask"]]


def test_rows_without_an_answer_are_refused(micro):
    _, tokenizer = micro
    with pytest.raises(ValueError, match="Row 0 has no answer token within max_length=4"):
        encode([{"prompt": "a b c d e f", "completion": "g"}], tokenizer, max_length=4)
    with pytest.raises(ValueError, match=r"Row 0 has the columns \['question'\]"):
        encode([{"question": "?"}], tokenizer)
    with pytest.raises(ValueError, match="no row to encode"):
        encode([], tokenizer)


def test_importing_the_workbench_is_quick_because_heavy_libraries_wait():
    heavy = ("torch", "transformers", "trl", "plotly", "pandas")
    code = f"import sys, workbench; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert done.stdout.strip() == "[]"
