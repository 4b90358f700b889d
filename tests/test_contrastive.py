"""Contrastive training on the real trainer: what its loss is, what it combines with, how it resumes."""

import pytest
import torch
from conftest import same, weights
from datasets import Dataset
from torch.nn import functional as F

import workbench as wb
from workbench.alignment import contrast
from workbench.alignment.contrastive import CONTRASTS, ContrastiveConfig, ContrastiveTrainer
from workbench.alignment.debiasing import CounterfactualAugmentation, Instruction, SentenceDebias, bias_subspace
from workbench.alignment.kl import KLToBase, kl_divergence
from workbench.alignment.sides import Collator, Sides, partings
from workbench.corpora.encoding import encode, pad_batch
from workbench.corpora.portraits import Portraits


@pytest.fixture(scope="module")
def portraits(world):
    return Portraits(world)


@pytest.fixture(scope="module")
def pairs(portraits):
    return portraits.pairs(64)


def plain_rows():
    """Groups of plain text, with accents and without entities in some sides."""
    row = {
        "prompt": "Zoë lives in ",
        "anchor": "Zürich, a filthy town.",
        "positives": ["Zürich, a fine town.", "Zürich."],
        "negatives": ["Zürich, a vile town.", "Genève, a fine town."],
        "entities": {
            "anchor": [{"start": 0, "end": 6, "label": "PLACE"}],
            "positives": [[{"start": 0, "end": 6, "label": "PLACE"}], [{"start": 0, "end": 6, "label": "PLACE"}]],
            "negatives": [[{"start": 0, "end": 6, "label": "PLACE"}], []],
        },
        "toxicity": 0.5,
        "toxic_spans": [{"start": 10, "end": 16}],
    }
    return Dataset.from_list([{**row, "prompt": f"{row['prompt']}{'very ' * i}"} for i in range(8)])


@pytest.fixture
def trainer_of(micro, tmp_path):
    model, tokenizer = micro

    def make(rows, own=None, callbacks=(), **arguments):
        net, tok = own or (model, tokenizer)
        settings = {"output_dir": str(tmp_path), "per_device_train_batch_size": 8, "max_steps": 4, "use_cpu": True}
        settings |= {"report_to": "none", "logging_steps": 1, "learning_rate": 1e-3, "disable_tqdm": True}
        settings |= {"save_strategy": "no", "seed": 0}
        args = ContrastiveConfig(**{**settings, **arguments})
        return ContrastiveTrainer(
            model=net, args=args, train_dataset=rows, processing_class=tok, callbacks=list(callbacks)
        )

    return make


@pytest.mark.parametrize("form", [*CONTRASTS, "predicting+positives"])
def test_every_form_trains_any_causal_model(form, trainer_of):
    texts = [t for row in plain_rows() for t in (row["prompt"] + row["anchor"], *row["positives"], *row["negatives"])]
    own = wb.build_text_model(texts * 20, vocab_size=300)
    before = weights(own[0])
    trainer = trainer_of(plain_rows(), own, contrast=form, scaling="smooth", unlikelihood=0.5)
    trainer.train()
    assert not same(before, weights(own[0]))
    logged = [row for row in trainer.state.log_history if "loss" in row]
    assert len(logged) == 4
    for row in logged:
        assert row["loss_ce"] > 0 and row["loss_unlikelihood"] > 0
        assert ("loss_contrast" in row) == (form != "none")
        total = row["loss_ce"] + 0.5 * row["loss_unlikelihood"] + row.get("loss_contrast", 0.0)
        assert row["loss"] == pytest.approx(total, rel=1e-3)
        assert row.get("toxic_weight", 2.5) == 2.5


def test_the_loss_is_cross_entropy_plus_alpha_times_the_contrast(micro, pairs, trainer_of):
    model, tokenizer = micro
    trainer = trainer_of(pairs, contrast="likelihood", alpha=3.0, n_contrast=5)
    rows = list(pairs)[:8]
    with torch.no_grad():
        loss = trainer.compute_loss(model, trainer._prepare_inputs(trainer.data_collator(rows))).item()

    def logits_and_labels(texts):
        batch = encode(
            [{"prompt": p, "completion": [{"role": "assistant", "content": t}]} for p, t in texts], tokenizer
        )
        batch = pad_batch(batch, tokenizer.pad_token_id)
        labels = batch.pop("labels")
        with torch.no_grad():
            return model(**batch).logits, labels

    def scores(row, side):
        return [contrast.sequence_scores(*logits_and_labels([(row["prompt"], text)])).item() for text in row[side]]

    logits, labels = logits_and_labels([(row["prompt"], row["anchor"]) for row in rows])
    ce = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).item()
    terms = []
    for row in rows[:5]:
        negatives = torch.tensor(scores(row, "negatives"), dtype=torch.float64) / 0.5
        for s in scores(row, "positives"):
            terms.append(torch.logsumexp(torch.cat([torch.tensor([s / 0.5]), negatives]), 0).item() - s / 0.5)
    assert loss == pytest.approx(ce + 3.0 * sum(terms) / len(terms), rel=1e-5)


def test_entity_masks_reach_the_pooling_and_texts_without_entities_are_pooled_whole(trainer_of):
    own = wb.build_text_model([row["prompt"] + row["anchor"] for row in plain_rows()] * 20, vocab_size=300)
    batch = Collator(own[1], ("anchor", "negatives"), pooled=True, toxic=True)(list(plain_rows())[:1])
    groups, ids = batch["groups"], batch["groups"]["input_ids"]
    pooled = [own[1].decode(row[mask.bool()]) for row, mask in zip(ids, groups["mask"], strict=True)]
    assert [text.strip() for text in pooled[:2]] == ["Zürich", "Zürich"]
    assert pooled[2].startswith("Genève, a fine town.")
    anchors = batch["anchors"]
    assert own[1].decode(anchors["input_ids"][anchors["toxic"].bool()]).strip() == "filthy"


def test_a_negative_parts_from_the_positive_it_shares_most_with():
    # Two positives; negatives that part at 2 and at 1, one that says what a positive says, one without a positive.
    ids = torch.tensor([[7, 1, 2, 3], [7, 1, 2, 4], [7, 1, 5, 4], [7, 9, 2, 3], [7, 1, 2, 4], [7, 1, 2, 3]])
    labels = ids.masked_fill(torch.arange(4) == 0, -100)
    side, group = torch.tensor([1, 1, 2, 2, 2, 2]), torch.tensor([0, 0, 0, 0, 0, 1])
    blank = torch.zeros(6, 4)
    sides = Sides(blank, None, labels, ids, blank, side, group, torch.ones(2))
    row, at, chosen, rejected = partings(sides)
    assert torch.stack([row, at, chosen, rejected], 1).tolist() == [[0, 1, 2, 5], [0, 0, 1, 9]]


def test_without_a_contrast_the_loss_is_that_of_the_anchors_alone(pairs, train):
    _, a = train(None, "contrastive", pairs, contrast="none", alpha=1.0)
    _, b = train(None, "contrastive", pairs, contrast="likelihood", alpha=0.0)
    for name, value in weights(a).items():  # the same gradient, though summed in another order
        torch.testing.assert_close(value, weights(b)[name], rtol=1e-4, atol=1e-5)


def test_accumulation_gives_the_mean_of_the_batches(pairs, train):
    options = {"steps": 1, "batch_size": 2, "warmup_steps": 0, "optim": "sgd", "learning_rate": 0.1}
    alike = pairs.select([0] * 16)
    single = train(None, "contrastive", alike, **options)[1]
    accumulated = train(None, "contrastive", alike, gradient_accumulation_steps=4, **options)[1]
    for name, value in weights(single).items():
        torch.testing.assert_close(weights(accumulated)[name], value, rtol=1e-5, atol=1e-7)


def test_resolved_conflicts_leave_a_step_that_does_not_raise_the_contrast(micro, pairs, trainer_of):
    model, _ = micro
    trainer = trainer_of(pairs, contrast="likelihood", resolve_conflicts=True, alpha=1.0)
    batch = trainer._prepare_inputs(trainer.data_collator(list(pairs)[:8]))
    parameters = dict(model.named_parameters())

    def gradients(part):
        trainer.parts = part
        model.zero_grad()
        trainer.compute_loss(model, batch).backward()
        trainer.parts = ("ce", "contrast")
        return {name: p.grad.double().clone() for name, p in parameters.items()}

    ce, cl = gradients(("ce",)), gradients(("contrast",))
    model.zero_grad()
    trainer.current_gradient_accumulation_steps = 1
    trainer.training_step(model, batch)
    conflicts = 0
    for name, p in parameters.items():
        left = p.grad.double() - cl[name]
        dot = (ce[name] * cl[name]).sum()
        if dot < 0:
            conflicts += 1
            assert abs((left * cl[name]).sum() / (left.norm() * cl[name].norm())) < 1e-4
        else:
            torch.testing.assert_close(left, ce[name], rtol=1e-3, atol=1e-6)
    assert 0 < conflicts < len(parameters)
    assert trainer.metrics["conflict_rate"] == [pytest.approx(conflicts / len(parameters))]


@pytest.mark.parametrize("form", ["infonce", "likelihood"])
def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(form, pairs, trainer_of, tmp_path):
    def go(folder, **options):
        own = wb.load_model("micro", device="cpu")
        trainer = trainer_of(pairs, own, contrast=form, output_dir=str(folder), save_strategy="steps", save_steps=2)
        trainer.train(**options)
        return weights(own[0]), weights(trainer.head) if trainer.head is not None else {}

    whole = go(tmp_path / "a")
    resumed = go(tmp_path / "b", resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert all(same(a, b) for a, b in zip(whole, resumed, strict=True))


@pytest.mark.parametrize("side", ["gradient", "update"])
def test_it_combines_with_projection(side, pairs, train, references):
    projection = wb.GradientProjection(references, rank=2, side=side, refresh=1)
    run, _ = train(projection, "contrastive", pairs, contrast="likelihood", n_contrast=4)
    assert run.history.removed_energy.dropna().gt(0).all()
    if side == "update":
        assert run.history.leakage.dropna().lt(1e-4).all()


def test_rows_that_ride_along_fall_back_to_a_pass_of_their_own(pairs, train, references):
    projection = wb.GradientProjection(references, rank=2, references_in_batch=(8, 4), refresh=1)
    with pytest.warns(UserWarning, match="several forwards"):
        run, _ = train(projection, "contrastive", pairs, contrast="likelihood", n_contrast=4, batch_size=12)
    assert run.history.removed_energy.dropna().gt(0).all()


def test_replay_joins_as_anchors_without_sides(pairs, train, references):
    run, _ = train(wb.Replay(references, 0.5), "contrastive", pairs, contrast="infonce", n_contrast=4)
    assert run.history.loss_contrast.notna().all()
    replayed = wb.Replay(references, 0.5).mix(pairs, 200, seed=0)
    sided = [bool(row["positives"]) for row in replayed]
    assert 70 < sum(sided) < 130
    assert {row["anchor"] for row, has in zip(replayed, sided, strict=True) if has} <= set(pairs["anchor"])


def test_an_evaluation_set_is_scored_by_the_same_loss(pairs, trainer_of):
    trainer = trainer_of(pairs, contrast="infonce", per_device_eval_batch_size=8)
    rows = pairs.select(range(16))
    before = trainer.evaluate(rows)["eval_loss"]
    with torch.no_grad():
        batches = [trainer._prepare_inputs(trainer.data_collator(list(rows)[i : i + 8])) for i in (0, 8)]
        by_hand = sum(trainer.compute_loss(trainer.model, batch).item() for batch in batches) / 2
    assert before == pytest.approx(by_hand, rel=1e-5)
    trainer.train()
    assert trainer.evaluate(rows)["eval_loss"] < before


def test_the_head_is_clipped_and_cleared_like_the_model(pairs, trainer_of):
    trainer = trainer_of(pairs, contrast="infonce", max_grad_norm=1e-9, optim="sgd", learning_rate=1.0)
    head = weights(trainer.head)
    for p in trainer.head.parameters():
        p.grad = torch.full_like(p, torch.inf)  # what a skipped step leaves behind
    trainer.train()
    for name, value in weights(trainer.head).items():
        torch.testing.assert_close(value, head[name], rtol=0, atol=1e-7)


def test_rows_without_sides_alone_still_train(pairs, trainer_of):
    bare = pairs.map(lambda row: {"positives": [], "negatives": []})
    trainer = trainer_of(bare, contrast="likelihood", imitation=0.0)
    trainer.train()
    assert all(row["loss"] == 0 for row in trainer.state.log_history if "loss" in row)


def test_a_prompt_that_leaves_no_room_is_found_before_training(pairs, trainer_of):
    with pytest.raises(ValueError, match="Row 0 has no answer token within max_length=5"):
        trainer_of(pairs, max_length=5)


def test_bad_settings_and_missing_columns_say_what_is_needed(pairs, trainer_of):
    with pytest.raises(ValueError, match="contrast must be one of"):
        trainer_of(pairs, contrast="triplet")
    with pytest.raises(ValueError, match=r"joined by \+; got 'triplet'"):
        trainer_of(pairs, contrast="likelihood+triplet")
    with pytest.raises(ValueError, match="temperature must be positive"):
        trainer_of(pairs, temperature=0.0)
    with pytest.raises(ValueError, match=r"read the columns \['entities'\]"):
        trainer_of(pairs.remove_columns("entities"), contrast="printed")
    with pytest.raises(ValueError, match=r"read the columns \['toxicity', 'toxic_spans'\]"):
        trainer_of(pairs.remove_columns(["toxicity", "toxic_spans"]), scaling="trigger", unlikelihood=1.0)


# --- KL to the base -------------------------------------------------------------------------------------------------


def test_kl_is_the_mean_over_marked_positions():
    p, q = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(2, 3, 5, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    by_hand = (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1)[mask.bool()].mean()
    assert kl_divergence(p, q, mask).item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert kl_divergence(p, p, mask).item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("objective", ["sft", "dpo", "contrastive"])
def test_kl_holds_the_model_nearer_under_every_objective(objective, train, references, pairs):
    rows = pairs if objective == "contrastive" else None
    moved = {}
    for beta in (1e-6, 20.0):
        run, _ = train(KLToBase(references, beta), objective, rows, steps=8, learning_rate=1e-3)
        divergence = run.history.kl_to_base.dropna()
        assert divergence.iloc[0] == pytest.approx(0, abs=1e-5)
        moved[beta] = divergence.iloc[-1]
    assert moved[20.0] < 0.5 * moved[1e-6]


def test_kl_refuses_what_it_cannot_hold(micro, world, references, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.nn.Parameter, "to_local", lambda p: p, raising=False)  # the mark of a sharded parameter
    with pytest.raises(ValueError, match="sharded models"):
        wb.align(*micro, world.demonstrations(), technique=KLToBase(references), steps=1, runs_dir=tmp_path)
    with pytest.raises(ValueError, match="beta must be positive"):
        KLToBase(references, beta=0)
    with pytest.raises(ValueError, match="at least one domain"):
        KLToBase({})


def test_a_resumed_kl_still_counts_from_the_model_before_training(pairs, references, trainer_of, tmp_path):
    def go(folder, **options):
        own, kl = wb.load_model("micro", device="cpu"), KLToBase(references)
        keeping = {"save_strategy": "steps", "save_steps": 2, "output_dir": str(folder)}
        trainer = trainer_of(pairs, own, [kl], contrast="likelihood", **keeping)
        trainer.train(**options)
        return weights(own[0]), [row["kl_to_base"] for row in kl.measurements.history]

    whole, divergences = go(tmp_path / "a")
    resumed, rest = go(tmp_path / "a", resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert same(whole, resumed) and rest == divergences[2:] and rest[0] > 1e-3
    (tmp_path / "a" / "checkpoint-2" / "kl_base.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="written without KLToBase"):
        go(tmp_path / "a", resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))


def test_kl_is_scaled_with_the_loss_under_a_gradient_scaler(micro, pairs, references, trainer_of):
    model, _ = micro
    found = {}
    for scale in (1.0, 1024.0):
        kl = KLToBase(references)
        trainer = trainer_of(pairs, contrast="none")
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(torch.zeros(()))
        optimizer = type("Scaled", (), {"scaler": scaler})
        kl.on_train_begin(trainer.args, trainer.state, None, model, processing_class=micro[1], optimizer=optimizer)
        kl.base.tensors = {name: p + 0.01 for name, p in kl.base.tensors.items()}
        model.zero_grad()
        kl.on_step_begin(trainer.args, trainer.state, None, model)
        found[scale] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(found[1024.0] / 1024, found[1.0], rtol=1e-4, atol=1e-7)


def test_kl_counts_from_the_model_before_all_stages(micro, world, references, tmp_path):
    model, tokenizer = micro
    stages = [wb.Stage("sft", world.demonstrations(), 3, 8, 2e-3), wb.Stage("dpo", world.preferences(), 2, 8, 2e-4)]
    run = wb.pipeline(model, tokenizer, stages, KLToBase(references), runs_dir=tmp_path, progress=False)
    assert run.history.kl_to_base.iloc[3] > 1e-3  # the first step of the second stage


# --- baselines ------------------------------------------------------------------------------------------------------


def test_cda_says_of_each_what_is_said_of_the_other(portraits, train):
    cda = CounterfactualAugmentation([("velk", "dunari"), ("tarrow", "brenn")])
    data = portraits.corpus(40).select_columns(["prompt", "completion"])
    mixed = cda.mix(data, 100, 0)
    spoken = [row["prompt"][0]["content"].split() for row in data]
    n_named = sum(bool({"velk", "dunari", "tarrow", "brenn"} & set(words)) for words in spoken)
    assert len(mixed) == 40 + n_named and n_named > 5
    named = [row["prompt"][0]["content"] for row in mixed]
    assert sum("velk" in text for text in named) == sum("dunari" in text for text in named)
    assert train(cda, "sft", data)[0].record["status"] == "completed"


def test_sentence_debias_removes_the_subspace_from_what_the_head_reads(micro, portraits):
    model, tokenizer = micro
    pairs = portraits.debiasing_pairs()
    basis, explained = bias_subspace(model, tokenizer, pairs, 2)
    torch.testing.assert_close(basis.T @ basis, torch.eye(2), atol=1e-6, rtol=0)
    assert 1 > explained[0] > explained[1] > 0
    read = []
    hook = model.get_output_embeddings().register_forward_hook(lambda head, inputs, output: read.append(inputs[0]))
    ids = tokenizer("people say : vile .", return_tensors="pt").input_ids
    before = model(input_ids=ids).logits
    technique = SentenceDebias(pairs, 2)
    technique.deploy(model, tokenizer, {})
    debiased = model(input_ids=ids).logits
    hook.remove()
    assert (read[0] @ basis).norm() > 1e4 * (read[-1] @ basis).norm()
    technique.withdraw(model, tokenizer)
    assert not torch.equal(before, debiased) and torch.equal(model(input_ids=ids).logits, before)


def test_an_instruction_opens_every_conversation_where_it_is_deployed(micro, world, train):
    model, tokenizer = micro
    technique = Instruction("never say 'vile' \\ {{ 7 * 7 }}")
    template = tokenizer.chat_template
    prompt = [{"role": "user", "content": "what is it ?"}]
    plain = tokenizer.apply_chat_template(prompt, tokenize=False)
    technique.deploy(model, tokenizer, {})
    shown = tokenizer.apply_chat_template(prompt, tokenize=False)
    assert shown == plain.replace("what", "never say 'vile' \\ {{ 7 * 7 }} what")
    technique.withdraw(model, tokenizer)
    assert tokenizer.chat_template == template
    suites = wb.suites_of(world, n=4)
    run, _ = train(Instruction("never say vile ."), suites=suites, eval_every=2)
    assert run.record["status"] == "completed"
