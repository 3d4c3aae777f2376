"""The denoiser in pieces on two processes: the gradient of one, and resumed to the same bits."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import helpers
import pytest

from ddpo.__main__ import main
from ddpo.building import sharding
from ddpo.errors import UserError
from ddpo.planning import memory
from ddpo.planning import plan as planning
from ddpo.records import metrics

DRIVER = """
import json
import os
import sys

from ddpo.__main__ import main
from ddpo.building import sharding
from ddpo.parallel import ranks

policies = []
shard = sharding.shard


def seen(policy, objective):
    shard(policy, objective)
    policies.append(policy)


sharding.shard = seen
folder, argv = sys.argv[1], sys.argv[2:]
for name in ("whole", "checkpointed"):
    more = ["--model.gradient_checkpointing", "true", "--trainer.iterations", "1"]
    options = more if name == "checkpointed" else []
    assert main(["train", *argv, "--run_dir", f"{folder}/{name}", *options]) == 0
network = policies[0].network
local = [p.to_local() if hasattr(p, "to_local") else p for p in network.parameters()]
held = sum(p.numel() for p in local) / sum(p.numel() for p in network.parameters())
served = ranks.before_waiting[0].__self__.served
with open(f"{folder}/{ranks.state().process_index}.json", "w") as file:
    json.dump({"held": held, "served": served}, file)
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 groups on 2 processes, so that one has a call more: a run, and one killed and resumed."""
    folder = tmp_path_factory.mktemp("shards")
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
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    return [*helpers.smoke(folder / "run"), *words]


def test_two_processes_are_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rewards to the bit, the gradient to 1e-5; each holds about half, and serves the other."""
    monkeypatch.syspath_prepend(folder)
    assert main(["train", *arguments(folder, "false"), "--run_dir", str(folder / "one")]) == 0
    one, two = (metrics.read(folder / name / "metrics.jsonl")[0] for name in ("one", "whole"))
    assert two["reward/mean"] == pytest.approx(one["reward/mean"], rel=1e-6)
    assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)
    assert two["ratio/max_dev"] <= 1e-6
    (row,) = metrics.read(folder / "checkpointed" / "metrics.jsonl")
    assert row["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)
    ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert all(0.45 < rank["held"] < 0.6 for rank in ranks)
    assert max(rank["served"] for rank in ranks) > 0


def test_killed_and_resumed_is_the_same_run(folder: Path) -> None:
    places = [
        folder / name / "checkpoints" / "000002" / f"{kind}.safetensors"
        for kind in ("parameters", "optimizer")
        for name in ("whole", "broken")
    ]
    contents = [place.read_bytes() for place in places]
    assert contents[0] == contents[1] and contents[2] == contents[3]


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
    assert "lora: null" in refused(2, lora=None)
    assert "model.compile" in refused(2, model__compile=True)


def test_a_plan_counts_the_pieces(folder: Path) -> None:
    """At rest half of every frozen weight is elsewhere; two blocks, and what is in none, are not
    while a network computes."""
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
