"""Two processes train like one: data-parallel (DDP) and sharded (FSDP2), over gloo on the CPU."""

import json
import os
import subprocess
import sys

import pytest
import torch
import training_processes
from safetensors.torch import load_file

import workbench as wb
from workbench.alignment.team import Team
from workbench.models import MICRO
from workbench.study.outcomes import differences
from workbench.study.runs import Run

# Adam hides a gradient that is off by a factor, and so does clipping; plain SGD shows both. With its usual ε Adam takes
# whole steps along gradients that are mere rounding: up to 7e-6 of difference after four steps of plain training.
SGD = {"optim": "sgd", "learning_rate": 1e-2, "max_grad_norm": 0.0}
ADAMW = {"optim": "adamw_torch", "learning_rate": 2e-3, "adam_epsilon": 1e-5}
# Portraits are all of one length, so that the mean over a batch is the mean over its parts.
CONTRAST = {"contrast": "likelihood", "alpha": 4.0}

PLAIN = {
    "sft, sgd": {"trainer": "sft", "arguments": SGD},
    "sft, adamw": {"trainer": "sft", "arguments": ADAMW},
    "dpo, sgd": {"trainer": "dpo", "arguments": SGD},
    "dpo, adamw": {"trainer": "dpo", "arguments": {**ADAMW, "learning_rate": 5e-4}},
    "contrastive, sgd": {"trainer": "contrastive", "arguments": SGD | CONTRAST},
    "contrastive, resolved": {"trainer": "contrastive", "arguments": SGD | CONTRAST | {"resolve_conflicts": True}},
    "trainer, adamw, accumulated": {"trainer": "trainer", "arguments": {**ADAMW, "gradient_accumulation_steps": 2}},
}
# 14 reference rows, 3 or 4 of a domain, do not part evenly among ranks.
PROJECTED = {
    "update, tensor": PLAIN["sft, adamw"] | {"projection": {"side": "update", "refresh": 2, "n_samples": 14}},
    "update, global": PLAIN["dpo, adamw"] | {"projection": {"side": "update", "scope": "global", "refresh": 2}},
    "update, accumulated": PLAIN["trainer, adamw, accumulated"] | {"projection": {"side": "update", "refresh": 2}},
    "gradient, tensor": PLAIN["sft, sgd"] | {"projection": {"side": "gradient", "refresh": 2, "n_samples": 14}},
    "gradient, global": PLAIN["dpo, sgd"] | {"projection": {"side": "gradient", "scope": "global", "refresh": 2}},
    "gradient, rank 6": PLAIN["sft, sgd"] | {"projection": {"side": "gradient", "rank": 6, "refresh": 2}},
    "metric": PLAIN["sft, adamw"] | {"projection": {"side": "metric", "refresh": 2}},
    "conflict": PLAIN["sft, sgd"] | {"projection": {"side": "gradient", "when": "conflict", "refresh": 2}},
    "restored": PLAIN["sft, sgd"] | {"projection": {"side": "gradient", "refresh": 2, "restore": 0.3}},
    "none": PLAIN["sft, adamw"] | {"projection": {"side": "none", "refresh": 2}},
}
# Each process has reference rows of its own in its batches, so that there is no one process to compare with.
RIDING = {"riding": PLAIN["sft, adamw"] | {"projection": {"references_in_batch": [4, 8], "restore": 0.3}}}
# Whole runs, SFT→DPO, evaluated on the way.
RUNS = {
    "run, projected": {"pipeline": "projected"},
    "run, kl": {"pipeline": "kl", "differs": True},
    "run, resumed": {"pipeline": "projected", "fails": 14},  # of four suites at steps 0, 2, 4 and 6
}
COPIES_ALONE = {*RIDING, "run, kl", "run, resumed"}
WRAPPERS = {"ddp": "DistributedDataParallel", "fsdp2": "FSDPLlamaForCausalLM"}
# transformers shards onto the device that torch was built for, whatever `use_cpu` says.
PARALLEL = ["ddp", "fsdp2"] if torch.accelerator.current_accelerator() is None else ["ddp"]

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="this torch was built without gloo, over which the processes talk",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Every case in one process and in two, of either kind, by one launch: (parallel, case) → result and weights."""
    root = tmp_path_factory.mktemp("distributed")

    def of(*parallels):
        return [
            {**case, "parallel": parallel, "out": str(root / parallel / name)}
            for name, case in (PLAIN | PROJECTED | RIDING | RUNS).items()
            for parallel in parallels
            if parallel == "ddp" or name not in COPIES_ALONE or (parallel == "none" and name not in RIDING)
        ]

    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launch += [training_processes.__file__, json.dumps(of(*PARALLEL))]
    log = root / "log"
    with log.open("w") as file:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        processes = subprocess.Popen(launch, stdout=file, stderr=subprocess.STDOUT, env=environment)
        try:
            training_processes.main(of("none"))
            processes.wait(timeout=180)
        finally:
            processes.terminate()  # torchrun ends its workers then
            processes.wait()

    def read(parallel, name):
        if parallel != "none" and parallel not in PARALLEL:
            pytest.skip("transformers shards onto the accelerator this torch was built for, not onto the CPU")
        folder = root / parallel / name
        if not (folder / "result.json").is_file():
            pytest.fail("\n".join(line for line in log.read_text().splitlines() if line.startswith("[rank")))
        return json.loads((folder / "result.json").read_text()), load_file(folder / "weights.safetensors")

    return read


def distance(a, b):
    """The largest difference between any two weights."""
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def assert_parity(trained, parallel, name):
    one, two = trained("none", name), trained(parallel, name)
    base = load_file(MICRO / "model.safetensors")
    assert distance(one[1], {name: base[name] for name in one[1]}) > 1e-3
    assert (one[0]["n_processes"], two[0]["n_processes"]) == (1, 2)
    assert two[0]["wrapped_in"] == WRAPPERS[parallel]
    assert distance(one[1], two[1]) < 1e-6
    assert two[0]["losses"] == pytest.approx(one[0]["losses"], rel=1e-4)
    assert len(two[0]["checksums"]) == 2 and len(set(two[0]["checksums"])) == 1, "the ranks have drifted apart"


@pytest.mark.parametrize("parallel", WRAPPERS)
@pytest.mark.parametrize("name", PLAIN)
def test_plain_training_in_two_processes_is_that_in_one(trained, parallel, name):
    assert_parity(trained, parallel, name)


@pytest.mark.parametrize("parallel", WRAPPERS)
def test_the_counter_of_collectives_sees_both_interfaces(trained, parallel):
    seen, _ = trained(parallel, "sft, sgd")
    shards = {"all_gather_into_tensor": 20} if parallel == "fsdp2" else {}  # the functional one, a parameter each
    assert seen["gathering"] == {"allgather_": 2, **shards}  # of an object: its size, then its bytes
    assert trained("none", "sft, sgd")[0]["gathering"] == {}


# --- with projection -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parallel", WRAPPERS)
@pytest.mark.parametrize("name", PROJECTED)
def test_projected_training_in_two_processes_is_that_in_one(trained, parallel, name):
    assert_parity(trained, parallel, name)
    one, two = trained("none", name)[0]["history"], trained(parallel, name)[0]["history"]
    assert [row["step"] for row in two] == [row["step"] for row in one] == [1, 2, 3, 4]
    for measure in ("random_floor", "removed_energy", "gradient_energy"):
        assert [row[measure] for row in two] == pytest.approx([row[measure] for row in one], rel=1e-3)


@pytest.mark.parametrize("parallel", WRAPPERS)
@pytest.mark.parametrize("name", [name for name in PROJECTED if name.startswith("update")])
def test_on_the_update_side_nothing_leaks_in_two_processes(trained, parallel, name):
    assert max(row["leakage"] for row in trained(parallel, name)[0]["history"]) < 1e-6


@pytest.mark.parametrize("parallel", WRAPPERS)
def test_measuring_alone_trains_bit_for_bit_like_no_callback_in_two_processes(trained, parallel):
    plain, measured = trained(parallel, "sft, adamw"), trained(parallel, "none")
    assert measured[0]["checksums"] == plain[0]["checksums"]


@pytest.mark.parametrize("parallel", WRAPPERS)
@pytest.mark.parametrize("name", PROJECTED)
def test_between_refreshes_ranks_wait_for_each_other_at_most_twice_a_step(trained, parallel, name):
    """Whole gradients lie on each rank of DDP, so none is needed; shards need their dot products summed."""
    allowed = {"ddp": 0, "fsdp2": 2}[parallel]
    for rank in trained(parallel, name)[0]["collectives"]:
        between = [sum(step.values()) for step in rank[1::2]]  # refreshed at the first step and every second after
        assert len(between) == 2 and max(between) <= allowed


def test_rows_that_ride_along_in_each_process_give_all_the_same_basis(trained):
    result, _ = trained("ddp", "riding")
    assert len(set(result["checksums"])) == 1
    assert max(row["leakage"] for row in result["history"]) < 1e-6


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parallel", "name"), [("ddp", "run, projected"), ("fsdp2", "run, projected"), ("ddp", "run, kl")]
)
def test_a_run_of_two_processes_leaves_the_record_of_one(trained, parallel, name):
    one, two = trained("none", name), trained(parallel, name)
    assert len(set(two[0]["checksums"])) == 1 and distance(one[1], two[1]) < 1e-5
    mine, theirs = Run.load(one[0]["path"]), Run.load(two[0]["path"])
    assert differences(mine, theirs, tolerance=1e-4) == []
    assert mine.scores == theirs.scores and len(mine.history) == 7 + 5
    assert mine.record["parameters_hash"] == theirs.record["parameters_hash"]  # so reuse finds either
    where = theirs.record["environment"]
    assert (where["n_processes"], where["parallel"], where["process_devices"]) == (2, parallel, ["cpu", "cpu"])
    assert mine.record["environment"]["parallel"] == "none"
    written = {"record.json", "history.parquet", "model"} | (
        {"blocks.parquet", "spectrum.parquet"} if "projected" in name else set()
    )
    assert {path.name for path in theirs.path.iterdir()} == written


@pytest.mark.parametrize("parallel", WRAPPERS)
def test_the_whole_model_is_saved_once(trained, parallel):
    result, weights = trained(parallel, "run, projected")
    saved = load_file(f"{result['path']}/model/model.safetensors")
    assert all(torch.equal(saved[name], weight) for name, weight in weights.items())
    wb.load_model(f"{result['path']}/model", device="cpu")


def test_what_fails_in_one_process_fails_in_all_and_all_go_on_from_the_checkpoint(trained):
    undisturbed, resumed = trained("ddp", "run, projected"), trained("ddp", "run, resumed")
    (lead,), (other,) = resumed[0]["errors"]
    assert lead == "OSError: the judge is out of reach"
    assert other == f"RuntimeError: Process 0 of 2 failed: {lead}"
    assert resumed[0]["checksums"] == undisturbed[0]["checksums"]
    run = Run.load(resumed[0]["path"])
    assert differences(run, Run.load(undisturbed[0]["path"])) == [] and len(run.record["resumed"]) == 1


def test_processes_that_are_not_about_to_do_the_same_do_not_begin(trained):
    """The one that did begin, in `test_a_run_of_two_processes_leaves_the_record_of_one`, was told the same seed."""
    errors = trained("ddp", "run, kl")[0]["errors"]
    assert len(errors) == 2
    assert all(error.startswith("ValueError: The 2 processes differ in parameters or data") for (error,) in errors)


def test_rows_that_cannot_be_shared_out_are_refused():
    team = Team(torch.nn.Linear(2, 2))
    assert team.share_of(15) == 15 and team.parallel == "none"
    team.size = 2
    assert team.share_of(16) == 8
    with pytest.raises(ValueError, match="15 cannot be shared out evenly over 2"):
        team.share_of(15)
