"""Train SFT→DPO, killed again and again and resumed each time, for `test_resuming.py`.

``python tests/killed_training.py '{"projected": {"folder": …, "deaths": [["step", 4], ["save", 1], …]}, …}'``: for
each setting of `SETTINGS` one process after the other calls `wb.pipeline` with ``reuse=True``. Each kills itself with
SIGKILL at the n-th time of an event in its own life, and the last one goes on to the end; without deaths it is the only
one.
"""

import json
import os
import signal
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from transformers import TrainerCallback
from trl import DPOTrainer, SFTTrainer  # here, so that the processes need not import them each

import workbench as wb
from workbench.alignment.techniques import Technique

TRAINERS = (SFTTrainer, DPOTrainer)
SETTINGS = {
    "projected": lambda references: [
        wb.GradientProjection(references, n_samples=16, refresh=3, restore=wb.Restore(2.0, tolerance=0.02)),
        wb.Merge(0.5),
    ],
    "kl": lambda references: [wb.KLToBase(references, n_rows=4), wb.Merge(0.5)],
    "lora": lambda references: [wb.LoRA(rank=2, dropout=0.1), wb.EWC(references, n_samples=16)],
}


class Mortal(TrainerCallback, Technique):
    """Kills its process at the n-th time of an event."""

    name = "mortal"

    def __init__(self, event=None, n=0):
        self.event, self.left = event, n

    def live(self, event):
        self.left -= event == self.event
        if event == self.event and not self.left:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_step_begin(self, *args, **kwargs):
        self.live("step")

    def on_save(self, *args, **kwargs):
        self.live("save")  # the trainer has written its checkpoint, the run has not kept it


def train(setting, folder, death=(None, 0)):
    """One process's try."""
    torch.set_num_threads(1)
    model, tokenizer = wb.load_model("micro", device="cpu")
    world = wb.load_world("micro")
    how = {"batch_size": 8, "learning_rate": 1e-3}
    stages = [
        wb.Stage("sft", world.demonstrations(28), steps=8, **how),
        wb.Stage("dpo", world.preferences(28), steps=6, **how),
    ]
    techniques = [*SETTINGS[setting](world.references(16)), Mortal(*death)]
    suites = {k: s for k, s in wb.suites_of(world, 6).items() if s.axis}
    way = {"eval_every": 3, "checkpoint_every": 2, "reuse": True, "progress": False}
    wb.pipeline(model, tokenizer, stages, techniques, suites=suites, runs_dir=folder, **way)


def main(tries):
    """All settings, try after try, each in a process of its own; prints how they ended."""
    ends = {}
    for setting, given in tries.items():
        for death in [*given["deaths"], (None, 0)]:
            child = os.fork()  # nothing has been computed before, so that it is as good as a fresh interpreter
            if not child:
                train(setting, given["folder"], death)
                os._exit(0)
            ends.setdefault(setting, []).append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(json.dumps(ends))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
