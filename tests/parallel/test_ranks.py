"""What happens to one rank happens to all: they end together, with one line, and only rank 0
speaks."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import helpers
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpo.parallel import ranks

DRIVER = """
import json
import os
import signal
import sys
import time

import torch

from ddpo.__main__ import main
from ddpo.errors import UserError
from ddpo.parallel import ranks
from ddpo.building import build
from ddpo.training import trainer, update

RANK = ranks.state().process_index


def mistake(*args):
    raise UserError("model.pretrained: 'x' is no folder of a StableDiffusionPipeline")


def defect(*args, **options):
    raise KeyError("oops")


def apart(parameters, *rest):
    # its own step, from the true gradient and a little more in one number
    norm = clip(parameters, *rest)
    parameters[-1].grad.view(-1)[0] += 1.0
    return norm


def missing(*args):
    import no_such_library


def die(*args):
    with open(f"{folder}/died", "w") as file:
        file.write(str(time.time()))
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(number, original, then):
    calls = []

    def counted(*args):
        calls.append(1)
        return (then if len(calls) == number else original)(*args)

    return counted


folder, argv = sys.argv[1], sys.argv[2:]
clip, backward = trainer.clip_gradients, update.Pass.backward
CASES = {
    "mistake": (build, "policy", mistake),
    "missing": (build, "policy", missing),
    "reward": (build, "policy", build.policy),  # the reward file itself raises
    "apart": (trainer, "clip_gradients", apart),
    "defect": (trainer, "sample", defect),
    "killed": (update.Pass, "backward", at_call(2, backward, die)),
}
for name, (owner, attribute, broken) in CASES.items():
    original = getattr(owner, attribute)
    if RANK == 1:
        setattr(owner, attribute, broken)
    os.environ["RAISES"] = name
    print(f"case {name}", file=sys.stderr, flush=True) if RANK == 0 else None
    code = main(["train", *argv, "--run_dir", f"{folder}/{name}"])
    with open(f"{folder}/codes.jsonl", "a") as file:
        file.write(json.dumps([name, RANK, code]) + "\\n")
    setattr(owner, attribute, original)
"""

REWARD = """import os

calls = []


def fragile(images, prompts, metadata):
    calls.append(1)
    if os.environ["RAISES"] == "reward" and os.environ["RANK"] == "1" and len(calls) == 2:
        return images.mean((1, 2, 3)) / 0 + [][0]
    return images.mean((1, 2, 3))
"""


@given(st.integers(0, 40), st.integers(1, 9))
def test_shares_are_blocks_that_differ_by_at_most_one(count: int, world: int) -> None:
    """In rank order they are all of the things; no rank is idle while there is one for each."""
    blocks = [ranks.share(count, rank, world) for rank in range(world)]
    assert [thing for block in blocks for thing in block] == list(range(count))
    assert all(block.step == 1 for block in blocks)
    assert max(map(len, blocks)) - min(map(len, blocks)) <= 1


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]], float]:
    """Six runs on two ranks, each of them spoilt on rank 1: the folder, the lines on stderr,
    seconds."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "driver.py").write_text(DRIVER)
    (folder / "fragile.py").write_text(REWARD)
    argv = helpers.smoke(
        folder,
        "--rewards",
        f"[{{name: '{folder / 'fragile.py'}:fragile'}}]",
        "--checkpoint.every",
        "10",
    )
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--standalone",
    ]
    done = subprocess.run(
        [*torchrun, str(folder / "driver.py"), str(folder), *argv],
        env=helpers.one_thread(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    seconds = time.time() - float((folder / "died").read_text())
    assert done.returncode != 0
    lines: dict[str, list[str]] = {}
    for line in done.stderr.splitlines():
        if line.startswith("case "):
            lines[line.removeprefix("case ")] = []
        elif line.startswith("ddpo: "):
            lines[list(lines)[-1]].append(line)
    return folder, lines, seconds


WORDS = {
    "mistake": (2, "ddpo: rank 1: model.pretrained: 'x' is no folder of a StableDiffusionPipeline"),
    "missing": (2, "ddpo: rank 1: No module named 'no_such_library'; install what is asked for"),
    "reward": (3, "ddpo: rank 1: reward fragile raised IndexError: list index out of range ("),
    "apart": (3, "ddpo: rank gate: after the first update 1 of "),
    "defect": (1, "ddpo: internal error: rank 1: KeyError: 'oops' ("),
    "killed": (3, "ddpo: lost another process of this run ("),
}


@pytest.mark.parametrize("case", WORDS)
def test_ranks_end_together(ended: tuple[Path, dict[str, list[str]], float], case: str) -> None:
    folder, lines, _ = ended
    code, words = WORDS[case]
    rows = [json.loads(line) for line in (folder / "codes.jsonl").read_text().splitlines()]
    found = {rank: ended_with for name, rank, ended_with in rows if name == case}
    assert found == ({0: code} if case == "killed" else {0: code, 1: code})
    (line,) = lines[case]
    assert line.startswith(words)


def test_what_they_leave(ended: tuple[Path, dict[str, list[str]], float]) -> None:
    folder, lines, seconds = ended
    assert seconds < 60, "a rank that dies stops the others within a minute"
    assert not (folder / "mistake").exists() and not (folder / "missing").exists()
    place = (
        f"({folder / 'fragile.py'}, line 9) (state saved; go on with --resume {folder / 'reward'})"
    )
    assert lines["reward"][0].endswith(place)
    assert [path.name for path in (folder / "reward" / "checkpoints").iterdir()] == ["000001"]
    state = json.loads((folder / "reward" / "checkpoints" / "000001" / "state.json").read_text())
    assert (
        state["iteration"] == 1
        and len((folder / "reward" / "metrics.jsonl").read_text().splitlines()) == 1
    )
    assert "the weights had begun to move; --resume" in lines["apart"][0]
    assert not (folder / "apart" / "checkpoints").exists()
    assert lines["killed"][0].endswith(f"--resume {folder / 'killed'} goes on from the start")


LEAVING = """
import atexit
import sys

import torch.distributed as dist

from ddpo.parallel import ranks


class Torn:
    def __del__(self):
        print("torn down")


dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
atexit.register(print, "what was registered")
dist.torn = Torn()
ranks.leave(3)
"""


def test_one_of_several_leaves_at_once(tmp_path: Path) -> None:
    """With its code and after what was to be done at exit, and nothing is torn down."""
    done = subprocess.run(
        [sys.executable, "-c", LEAVING, str(tmp_path / "meeting")],
        env=helpers.one_thread(),
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (3, "what was registered\n")


def test_one_alone_leaves_as_any_program() -> None:
    with pytest.raises(SystemExit, match="3"):
        ranks.leave(3)


SLOW = """
import atexit
import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from ddpo.parallel import ranks
from ddpo.__main__ import main

folder, argv = sys.argv[1], sys.argv[2:]
parted = Path(folder) / f"{os.environ['RANK']}.parted"


def parted_then_gone():
    parted.write_text(str(not dist.is_initialized()))
    os._exit(code)


atexit.register(parted_then_gone)
ranks.state()
dist.distributed_c10d._set_pg_timeout(timedelta(seconds=3))
code = main(["train", *argv])
import slow

with open(f"{folder}/{os.environ['RANK']}.json", "w") as file:
    json.dump([code, slow.reward.calls, slow.judge.calls], file)
"""

SLEEPY = """import os
import time


class Sleepy:
    def __init__(self, name):
        self.__name__, self.calls = name, []

    def __call__(self, images, prompts, metadata):
        if os.environ["RANK"] == "0" and not self.calls:
            time.sleep(6)
        self.calls.append(len(images))
        return images.mean((1, 2, 3))


reward, judge = Sleepy("reward"), Sleepy("judge")
"""


def test_no_rank_runs_out_of_time_while_another_is_busy(tmp_path: Path) -> None:
    """Rank 0 is slow with the first pictures, and slow at judging: twice the timeout of the process
    group.

    The pictures are 3: one on rank 0, two on rank 1; then 4 images of the rollout, then 2 of 4
    judged.
    """
    (tmp_path / "driver.py").write_text(SLOW)
    (tmp_path / "slow.py").write_text(SLEEPY)
    argv = helpers.smoke(
        tmp_path / "run",
        "--rewards",
        "[{name: 'slow:reward'}]",
        "--eval_rewards",
        "[{name: 'slow:judge'}]",
        "--sampler.batch_size",
        "1",
        "--log.images",
        "3",
        "--evaluation.every",
        "1",
        "--evaluation.num_prompts",
        "4",
        "--trainer.iterations",
        "1",
    )
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--standalone",
    ]
    environment = helpers.one_thread()
    environment["PYTHONPATH"] += f"{os.pathsep}{tmp_path}"
    done = subprocess.run(
        [*torchrun, str(tmp_path / "driver.py"), str(tmp_path), *argv],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert found == [[0, [1] * 9, [1] * 4], [0, [1] * 10, [1] * 4]]
    # or the interpreter's end, here left out, aborts one process in five
    assert [(tmp_path / f"{rank}.parted").read_text() for rank in (0, 1)] == ["True", "True"]
    samples = tmp_path / "run" / "samples"
    pictures = {str(path.relative_to(samples)) for path in samples.rglob("*.png")}
    assert pictures == {"000000.png", "000000/00.png", "000000/01.png", "000000/02.png"}
