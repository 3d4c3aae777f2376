"""The denoiser in pieces on two processes: the update of one, and resumed to the same bits.

Under an adapter, and trained itself.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import helpers
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor

from ddpo.__main__ import main
from ddpo.building import sharding
from ddpo.errors import Stopped, UserError
from ddpo.parallel import ranks
from ddpo.parallel.lockstep import Call, Kind, Lockstep
from ddpo.planning import memory
from ddpo.planning import plan as planning
from ddpo.records import metrics
from ddpo.training import gates

DRIVER = """
import json
import os
import sys

from ddpo.__main__ import main
from ddpo.building import build
from ddpo.parallel import ranks

trainers = []
make = build.trainer


def seen(settings):
    trainers.append(make(settings))
    return trainers[-1]


build.trainer = seen
folder, argv = sys.argv[1], sys.argv[2:]
once = ["--trainer.iterations", "1"]
runs = {"whole": [], "checkpointed": ["--model.gradient_checkpointing", "true", *once]}
if "--lora" in argv:
    runs["referred"] = ["--objective.name", "dpo", *once]
for name, options in runs.items():
    assert main(["train", *argv, "--run_dir", f"{folder}/{name}", *options]) == 0


def numel(tensors):
    return sum((t.to_local() if hasattr(t, "to_local") else t).numel() for t in tensors)


policy, states = trainers[0].policy, trainers[0].optimizer.state.values()
own, served = [*policy.network.parameters()], ranks.before_waiting[0].__self__.served
held = numel(own) / sum(p.numel() for p in own)
kept = [*policy.parameters().values(), *(t for each in states for t in each.values())]
kept += [t for values in policy.snapshots.values() for t in values.values()]
with open(f"{folder}/{ranks.state().process_index}.json", "w") as file:
    json.dump({"held": held, "served": served, "kept": 4 * numel(kept)}, file)
os.environ["FRAGILE"] = "1"
import fragile

fragile.calls.clear()
main(["train", *argv, "--run_dir", f"{folder}/broken"])
"""

FRAGILE = """import os
import signal

calls = []


def fragile(images, prompts, metadata):
    calls.append(1)
    if os.environ.get("RANK") == "1" and os.environ.get("FRAGILE") and len(calls) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return images.mean((1, 2, 3))
"""


def on_two(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    two = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    environment = helpers.one_thread()
    environment["PYTHONPATH"] += f"{os.pathsep}{folder}"
    return subprocess.run(
        [sys.executable, *two, *argv], env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module", params=["adapter", "network"])
def trained(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, trained: str) -> Path:
    """3 groups on 2 processes, so that one has a call more: a run, and one killed and resumed."""
    folder = tmp_path_factory.mktemp(trained)
    (folder / "fragile.py").write_text(FRAGILE)
    (folder / "driver.py").write_text(DRIVER)
    argv = arguments(folder)
    killed = on_two(folder, str(folder / "driver.py"), str(folder), *argv)
    run = str(folder / "broken")
    assert killed.returncode != 0 and helpers.done(Path(run)) == [1], killed.stderr
    shutil.copytree(run, folder / "alone")
    resumed = on_two(folder, "-m", "ddpo.train", "--resume", run)
    assert resumed.returncode == 0, resumed.stderr
    return folder


def arguments(folder: Path, shard: str = "true") -> list[str]:
    flags = {
        "trainer.iterations": "2",
        "trainer.prompts_per_iteration": "3",
        "trainer.minibatches": "1",
        "trainer.micro_batch": "2",
        "sampler.batch_size": "2",
        "sampler.num_steps": "2",
        "checkpoint.every": "1",
        "trainer.while_sampling": "false",
        "parallel.shard": shard,
        "log.images": "1",
        "rewards": "[{name: 'fragile:fragile'}]",
    }
    smoke = helpers.smoke(folder / "run")
    if folder.name.startswith("network"):
        flags |= {"lora": "null", "ema.decay": "0.9"}
        del smoke[(rank := smoke.index("--lora.rank")) : rank + 2]
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    return [*smoke, *words]


def tensors(run: Path, iteration: int) -> dict[str, dict[str, Tensor]]:
    """Those of a checkpoint, by file."""
    files = (run / "checkpoints" / f"{iteration:06d}").glob("*.safetensors")
    return {file.stem: load_file(file) for file in files}


def relative(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The difference as one vector, by the length of the first."""
    assert list(one) == list(other) and all(one[k].shape == other[k].shape for k in one)
    assert all(one[name].dtype == other[name].dtype for name in one)
    flat = [torch.cat([t.double().flatten() for t in each.values()]) for each in (one, other)]
    return ((flat[0] - flat[1]).norm() / flat[0].norm()).item()


def test_two_processes_are_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rewards to the bit, gradient and weights to 1e-5; each holds about half, and serves the
    other."""
    monkeypatch.syspath_prepend(folder)
    assert main(["train", *arguments(folder, "false"), "--run_dir", str(folder / "one")]) == 0
    states = [tensors(folder / name, 1) for name in ("one", "whole")]
    assert states[0].keys() == states[1].keys()
    assert all(relative(states[0][kind], states[1][kind]) < 1e-5 for kind in states[0])
    one, two = (metrics.read(folder / name / "metrics.jsonl")[0] for name in ("one", "whole"))
    assert two["reward/mean"] == pytest.approx(one["reward/mean"], rel=1e-6)
    assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)
    # as a distance: of a difference of fp32 numbers near 1, each of which is rounded by 1e-7
    assert two["kl_ref"] ** 0.5 == pytest.approx(one["kl_ref"] ** 0.5, abs=1e-6)
    assert two["ratio/max_dev"] <= 1e-6
    (row,) = metrics.read(folder / "checkpointed" / "metrics.jsonl")
    assert row["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)
    ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert all(0.45 < rank["held"] < 0.6 for rank in ranks)
    assert max(rank["served"] for rank in ranks) > 0


def test_killed_and_resumed_is_the_same_run(folder: Path) -> None:
    whole, broken = (folder / name / "checkpoints" / "000002" for name in ("whole", "broken"))
    kinds = {file.name for file in whole.glob("*.safetensors")}
    assert {"parameters.safetensors", "optimizer.safetensors"} <= kinds
    assert all((whole / kind).read_bytes() == (broken / kind).read_bytes() for kind in kinds)


def test_one_process_goes_on_with_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    run = folder / "alone"
    assert main(["train", "--resume", str(run), "--parallel.shard", "false"]) == 0
    alone, two = (
        metrics.read(folder / name / "metrics.jsonl")[1]["grad_norm"] for name in ("alone", "whole")
    )
    assert alone == pytest.approx(two, rel=1e-4)


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    def refused(processes: int, **changes: object) -> str:
        settings = helpers.settings(tmp_path, parallel__shard=True, **changes)
        with pytest.raises(UserError, match=r"^parallel\.shard: true: ") as error:
            planning.plan(settings, processes)
        return str(error.value)

    assert "one process has nobody" in refused(1)
    assert "adamw" in refused(2, lora=None, trainer__optimizer="adafactor")
    assert "model.compile" in refused(2, model__compile=True)


def test_a_plan_counts_the_pieces(folder: Path, trained: str) -> None:
    """At rest half of every frozen weight is elsewhere; two blocks, and what is in none, are not
    while a network computes."""
    if trained == "network":
        pytest.skip("it has no frozen weights")
    shared = planning.plan(helpers.settings(folder, parallel__shard=True), 2)
    whole = planning.plan(helpers.settings(folder), 2)
    assert memory._elsewhere(whole) == 0
    network = shared.policy.network
    frozen = {p: p.nbytes for p in network.parameters() if not p.requires_grad}
    blocks = [
        sum(frozen.get(p, 0) for p in block.parameters()) for block in sharding.blocks(network)
    ]
    own = sum(frozen.values()) - sum(blocks)
    at_rest = memory._elsewhere(shared) + 2 * max(blocks) + own / 2
    held = 1 - at_rest / sum(p.nbytes for p in network.parameters())
    assert held == pytest.approx(json.loads((folder / "0.json").read_text())["held"], rel=0.02)


@pytest.fixture
def network(folder: Path, trained: str) -> Path:
    """The runs that trained the network itself."""
    if trained == "adapter":
        pytest.skip("the network is frozen")
    return folder


def test_a_reference_lies_in_pieces_too(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It computes between a forward pass of the trained weights and its backward pass."""
    monkeypatch.syspath_prepend(network)
    argv = [*arguments(network, "false"), "--objective.name", "dpo", "--trainer.iterations", "1"]
    assert main(["train", *argv, "--run_dir", str(network / "refers")]) == 0
    one, two = (metrics.read(network / n / "metrics.jsonl")[0] for n in ("refers", "referred"))
    assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)
    # as a distance: of a difference of fp32 numbers near 1, each of which is rounded by 1e-7
    assert two["kl_ref"] ** 0.5 == pytest.approx(one["kl_ref"] ** 0.5, abs=1e-6)


def test_the_whole_network_is_saved(network: Path) -> None:
    """As diffusers reads it, here the average; of FSDP nothing is left in the files."""
    unet = UNet2DConditionModel.from_pretrained(network / "whole" / "lora" / "unet")
    saved = {f"unet.{name}": value for name, value in unet.state_dict().items()}
    average = tensors(network / "whole", 2)["ema"]
    assert saved.keys() == average.keys()
    assert all(torch.equal(average[name], value) for name, value in saved.items())
    config = json.loads((network / "whole" / "lora" / "unet" / "config.json").read_text())
    assert config["_class_name"] == "UNet2DConditionModel"


def test_a_plan_counts_trained_pieces(network: Path) -> None:
    """Weights, base, average and the optimizer's two averages: half of each is elsewhere."""
    settings = helpers.settings(network, parallel__shard=True, lora=None, ema__decay=0.9)
    shared, alone = planning.plan(settings, 2), planning.plan(helpers.settings(network, lora=None))
    parts, whole = memory.footprint(shared), memory.footprint(alone)
    trained = sum(p.nbytes for p in shared.policy.parameters().values())
    gathered = memory._gathered(shared)
    kept = parts["weights"] + parts["training"] - gathered - (whole["weights"] - trained)
    assert kept == pytest.approx(5 * trained / 2, rel=1e-3)
    held = json.loads((network / "0.json").read_text())["kept"]
    assert kept == pytest.approx(held, rel=0.02)
    assert gathered < trained / 2


def test_larger_calls_come_first() -> None:
    """Ranks that are not at the same call help each other, and none waits for ever."""
    barrier, told, seen = threading.Barrier(2, timeout=10), dict[str, Call](), list[str]()

    def rank(name: str, *calls: Call) -> None:
        def agreed(call: Call) -> Call:
            told[name] = call
            barrier.wait()
            found = max(told.values())
            barrier.wait()
            return found

        lockstep = Lockstep(lambda call: seen.append(f"{name} helps {call.kind:d}{call.weights}"))
        lockstep._agreed = agreed
        for call in calls:
            lockstep.announce(call)
        lockstep.serve()

    present, base = Call(Kind.FORWARD), Call(Kind.FORWARD, 1)
    threads = [
        threading.Thread(target=rank, args=("a", present, base)),
        threading.Thread(target=rank, args=("b", base, present, Call(Kind.BACKWARD))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert seen == ["a helps 11", "a helps 30", "b helps 11"]


def test_pieces_of_different_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = helpers.policy()
    policy.cut_from = torch.zeros(3)  # pyright: ignore[reportAttributeAccessIssue]
    gates.check_ranks(policy)
    monkeypatch.setattr(ranks, "agree", lambda value: False)
    with pytest.raises(Stopped, match="cut their pieces from different weights"):
        gates.check_ranks(policy)


OUT_OF_MEMORY = """
import os
import sys

import torch

from ddpo.__main__ import script
from ddpo.building import sharding

predict, calls = sharding._Calls.predict, []


def short(self, *arguments):
    calls.append(1)
    output = predict(self, *arguments)
    if os.environ["RANK"] == "1" and torch.is_grad_enabled() and len(calls) > 8:
        output.register_hook(full)
    return output


def full(gradient):
    raise torch.OutOfMemoryError("CUDA out of memory")


sharding._Calls.predict = short
sys.argv[1:] = ["train", *sys.argv[1:]]
script()
"""


def test_a_rank_without_memory_ends_the_run(tmp_path: Path) -> None:
    """Within a call of both: it cannot try again alone, nor tell the other, which waits in it."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "fragile.py").write_text(FRAGILE)
    (folder / "driver.py").write_text(OUT_OF_MEMORY)
    run = folder / "run"
    ended = on_two(folder, str(folder / "driver.py"), *arguments(folder), "--run_dir", str(run))
    said = [line for line in ended.stderr.splitlines() if line.startswith("ddpo: rank 1")]
    assert ended.returncode != 0 and len(said) == 1, ended.stderr
    assert "no room for trainer.micro_batch 2" in said[0]
    assert f"take --trainer.micro_batch 1; --resume {run} goes on" in said[0], said
