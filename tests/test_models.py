"""Loading, building and saving models: any folder goes the same way, and what is wrong is said clearly."""

import pytest
import torch

import workbench as wb
from workbench.models import fingerprint, is_sharded


def test_a_saved_model_is_loaded_from_its_folder(tmp_path):
    model, tokenizer = wb.build_text_model(["a small text to learn merges from"] * 5, vocab_size=300)
    folder = wb.save_model(model, tokenizer, tmp_path / "qwen")
    loaded, loaded_tokenizer = wb.load_model(folder, device="cpu", dtype="float32")
    assert type(loaded).__name__ == "Qwen2ForCausalLM"
    assert fingerprint(loaded) == fingerprint(model)
    assert loaded_tokenizer.chat_template == tokenizer.chat_template
    assert loaded_tokenizer.decode(loaded_tokenizer("é 🙂 \n x").input_ids) == "é 🙂 \n x"
    assert (folder / "model.safetensors").is_file() and not list(tmp_path.glob("*.partial"))


def test_one_process_alone_holds_the_whole_model():
    whole, sharded = (wb.load_model("micro", device="cpu", shard=shard)[0] for shard in (False, True))
    assert fingerprint(sharded) == fingerprint(whole) and not is_sharded(sharded)


def test_dtype_and_name_are_kept():
    model, _ = wb.load_model("micro", device="cpu", dtype="bfloat16")
    assert model.dtype == torch.bfloat16 and model.name_or_path == "micro"


def test_the_same_seed_builds_the_same_model_and_leaves_the_random_state_alone():
    world, state = wb.MicroWorld(), torch.get_rng_state()
    assert fingerprint(wb.build_model(world, seed=1)[0]) == fingerprint(wb.build_model(world, seed=1)[0])
    assert fingerprint(wb.build_model(world, seed=1)[0]) != fingerprint(wb.build_model(world, seed=2)[0])
    assert torch.equal(state, torch.get_rng_state())


def test_what_is_no_model_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"is a folder but no model folder: .*notes\.txt"):
        wb.load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="holds no complete causal language model"):
        wb.load_model(tmp_path)
    with pytest.raises(FileNotFoundError, match="found nothing there"):
        wb.load_model(tmp_path / "absent")
    with pytest.raises(OSError, match=r"Expected 'micro', a local model folder or a hub id, got 'no-such/model'"):
        wb.load_model("no-such/model")
    with pytest.raises(ValueError, match="size must be one of"):
        wb.build_model(wb.MicroWorld(), "7B")


def test_saving_never_replaces_what_is_no_model(tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    model, tokenizer = wb.build_model(wb.MicroWorld())
    with pytest.raises(FileExistsError, match="holds files but no model"):
        wb.save_model(model, tokenizer, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "x"
    wb.save_model(model, tokenizer, tmp_path / "m")
    wb.save_model(model, tokenizer, tmp_path / "m")


def test_remote_code_does_not_run_unless_asked(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}')
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(Exception, match=r"trust_remote_code|custom code"):
        wb.load_model(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_the_world_of_a_model(tmp_path, world):
    assert wb.load_world("micro") == world == wb.MicroWorld(**wb.load_card()["world"])
    model, tokenizer = wb.build_text_model(["text"] * 3, vocab_size=280)
    assert wb.load_world(wb.save_model(model, tokenizer, tmp_path / "m"), "data") == wb.RealWorld("data")
    with pytest.raises(FileNotFoundError, match=r"card\.json"):
        wb.load_card(tmp_path / "m")


def test_a_base_model_is_trained_and_saved_with_its_card(tmp_path):
    world = wb.MicroWorld(seed=9, n_people=6, n_attributes=2, n_verbs=2, n_materials=2, n_kinds=4)
    wb.pretrain(world, tmp_path / "tiny", seed=9, steps=60, batch_size=16)
    card = wb.load_card(tmp_path / "tiny")
    assert card["recipe"]["steps"] == 60 and wb.load_world(tmp_path / "tiny") == world
    scores = wb.evaluate(*wb.load_model(tmp_path / "tiny", device="cpu"), wb.suites_of(world, n=None))
    assert scores == card["scores"]
    with pytest.raises(ValueError, match=r"Unknown recipe entries \['step'\]"):
        wb.pretrain(world, tmp_path / "x", step=1)
