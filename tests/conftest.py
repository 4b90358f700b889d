"""What the tests share: quiet libraries, one thread, no hub, the shipped base model, and the real sample files."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

import workbench as wb

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT.parent / "shared" / "data" / "sample"


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tiny tensors are slower on several threads, and the tests run beside each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def world():
    return wb.load_world("micro")


@pytest.fixture
def micro():
    """A fresh copy of the shipped base model and its tokenizer, on the CPU."""
    return wb.load_model("micro", device="cpu")


@pytest.fixture(scope="session")
def samples():
    """The folder of real sample files, where it lies beside the checkout.

    Their licences (non-commercial, share-alike) keep them out of the repository.
    """
    if not SAMPLES.is_dir():
        place = SAMPLES.relative_to(ROOT.parent)
        pytest.skip(f"needs the public sample files, which licences keep out of the repository, in {place} beside it")
    return SAMPLES


@pytest.fixture(scope="session")
def references(world):
    return world.references(40)


@pytest.fixture
def train(world, tmp_path):
    """Align a fresh micro model for a few steps and return run and model."""

    def go(technique=None, objective="sft", data=None, **options):
        model, tokenizer = wb.load_model("micro", device="cpu")
        if data is None:
            data = world.demonstrations() if objective == "sft" else world.preferences()
        given = {"steps": 4, "learning_rate": 2e-3, "lr_scheduler_type": "constant", "runs_dir": tmp_path}
        given |= {"progress": False}
        return wb.align(model, tokenizer, data, objective, technique, **{**given, **options}), model

    return go


def weights(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def same(a, b):
    return all(torch.equal(a[n], b[n]) for n in a)
