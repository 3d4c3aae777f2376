"""What `ddpo plan` says is what a run then does: calls counted at the UNet, bytes at the
process."""

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dna_runs
import families
import helpers
import pytest
import torch
from diffusers import UNet2DConditionModel
from families import FAMILIES
from safetensors.torch import load_file

from ddpo import config, finetune, plugins
from ddpo.building import build
from ddpo.commands import frame, plan
from ddpo.config import Config, Objective, Reward
from ddpo.models.stable_diffusion import StableDiffusion
from ddpo.planning import calls, imaginary, memory
from ddpo.planning import plan as planning

RAGGED = {"trainer__micro_batch": 7, "sampler__batch_size": 5}


def replayed(**options: Any) -> dict[str, Any]:
    """What a pathwise objective with these options needs: a reward that has a gradient."""
    objective = Objective(name="draft", **options)
    return {"rewards": [Reward(name="brightness")], "objective": objective}


COUPLED = """
from ddpo.objectives import declare

@declare(needs=("logp_ref",))
def drift(logp, batch):
    return (logp - batch.logp_ref)[:, batch.stochastic].sum(1).diff().square().mean()
"""


@pytest.fixture
def coupled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An objective that is not separable and wants the reference, in a folder of the user's."""
    (tmp_path / "mine" / "objectives").mkdir(parents=True)
    (tmp_path / "mine" / "objectives" / "drift.py").write_text(COUPLED)
    monkeypatch.setenv(plugins.VARIABLE, "")
    return str(tmp_path / "mine")


@pytest.mark.parametrize(
    ("objective", "sampler", "guidance", "changes"),
    [
        ("ddpo", "ddim", 3.0, RAGGED | {"trainer__epochs": 2, "trainer__iterations": 2}),
        ("drift", "ddpm", 1.0, RAGGED),
        ("drift", "ddim", 3.0, {"trainer__micro_batch": 64, "trainer__minibatches": 4}),
        (
            "grpo",
            "ddim",
            3.0,
            {"objective__kl_weight": 0.1, "objective__timestep_fraction": 0.5, "ema__decay": 0.5},
        ),
        ("prdp", "ddim", 3.0, {"objective__kl_weight": 0.1, "objective__guidance_scale": 1.0}),
        ("rwr", "ddim", 3.0, {"objective__draws": 5, "advantage__keep_extremes": 1}),
        ("dpo", "ddim", 1.0, {"trainer__samples_per_prompt": 3, "trainer__micro_batch": 7}),
        ("draft", "ddim", 3.0, RAGGED | replayed()),
        ("draft", "ddim", 1.0, RAGGED | replayed(renoisings=2)),
        (
            "draft",
            "ddpm",
            3.0,
            RAGGED | replayed(last_steps=(1, 3), kl_weight=0.1) | {"trainer__epochs": 3},
        ),
        ("draft", "ddim", 3.0, replayed(last_steps=3, to_x0=True)),
    ],
)
def test_the_calls_are_counted(
    objective: str,
    sampler: str,
    guidance: float,
    changes: dict[str, Any],
    coupled: str,
    tmp_path: Path,
) -> None:
    """Ragged chunks, minibatches, passes, a step without a density (ddpm's last), pictures, an
    evaluation."""
    every = {"log__every": 1, "evaluation__every": 1, "trainer__iterations": 1}
    settings = helpers.settings(
        tmp_path / "run",
        objective__name=objective,
        sampler__name=sampler,
        plugins=[coupled],
        sampler__guidance_scale=guidance,
        log__images=3,
        evaluation__num_prompts=3,
        **every | changes,
    )
    done: Counter[tuple[int, bool]] = Counter()

    def count(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, UNet2DConditionModel):
            done[len(inputs[0]), torch.is_grad_enabled()] += 1

    hook = torch.nn.modules.module.register_module_forward_pre_hook(count)
    try:
        finetune(settings)
    finally:
        hook.remove()
    told, planned = planning.plan(settings), Counter[tuple[int, bool]]()
    for iteration in range(settings.trainer.iterations):
        for call, number in calls.calls(told, iteration).items():
            planned[call.rows * (2 if call.guided else 1), call.grad] += number
    assert planned == done
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    assert (newest / "ema.safetensors").exists() == bool(settings.ema.decay)
    tensors = [item for file in newest.glob("*.safetensors") for item in load_file(file).items()]
    written = sum(tensor.nbytes for key, tensor in tensors if not key.startswith("step/"))
    assert memory.footprint(told)["training"] == written


def test_two_processes_by_hand(tmp_path: Path) -> None:
    """Each has 2 of 4 groups of 2 images, and one of each minibatch's 2 groups: 6 pairs in 2 calls
    of 4."""
    sizes = {"sampler__batch_size": 3, "trainer__micro_batch": 4, "log__images": 0}
    settings = helpers.settings(tmp_path, **sizes)
    assert calls.calls(planning.plan(settings, 2), 0) == {
        calls.Call("sampling", 3, True): 2 * 2 * 3,
        calls.Call("ratio gate", 4, True): 2,
        calls.Call("updates", 4, True, grad=True): 2 * 2 * 2,
        calls.Call("kl_ref", 1, True): 2,
    }


def test_an_evaluation_shares_whole_prompts(tmp_path: Path) -> None:
    """3 prompts of 2 images, before the first iteration and after it: one process has 1 prompt, in
    1 call of 2 a step, the other 2, in 2."""
    sizes = {"sampler__batch_size": 2, "evaluation__every": 1, "evaluation__num_prompts": 3}
    settings = helpers.settings(tmp_path, evaluation__samples_per_prompt=2, **sizes)
    assert (
        calls.calls(planning.plan(settings, 2), 0)[calls.Call("evaluation", 2, True)]
        == 2 * (1 + 2) * 3
    )
    settings.sampler.batch_size = 3  # the images alone would be 3 and 3
    assert (
        calls.calls(planning.plan(settings, 2), 0)[calls.Call("evaluation", 3, True)]
        == 2 * (1 + 2) * 3
    )


def test_pictures_are_shared(tmp_path: Path) -> None:
    """3 pictures, before the first iteration and after it: one process draws 1, the other 2."""
    settings = helpers.settings(tmp_path, log__images=3, log__every=1, sampler__batch_size=1)
    found = calls.calls(planning.plan(settings, 2), 0)
    assert found[calls.Call("pictures", 1, True)] == 2 * (1 + 2) * 3


def _paddings(settings: Config, processes: int) -> dict[str, Any]:
    found = calls.paddings(planning.plan(settings, processes))
    return {each.place: (pytest.approx(each.share), each.better) for each in found}


def test_padding_by_hand(tmp_path: Path) -> None:
    """12 prompts of 5 images, 3 steps: 60 images; 2 minibatches of 6 prompts, each of 15 pairs."""
    settings = helpers.settings(tmp_path, sampler__batch_size=32, trainer__micro_batch=32)
    settings.trainer.prompts_per_iteration, settings.trainer.samples_per_prompt = 12, 5
    updates = {"trainer.micro_batch": (1 - 90 / 96, [30, 45])}
    assert _paddings(settings, 1) == updates | {"sampler.batch_size": (1 - 60 / 64, [30, 60])}
    updates = {"trainer.micro_batch": (1 - 45 / 64, [15, 45])}
    assert _paddings(settings, 2) == updates | {"sampler.batch_size": (1 - 30 / 32, [30])}
    settings.sampler.batch_size, settings.trainer.micro_batch = 10, 15
    assert _paddings(settings, 2) == {}
    assert _paddings(settings, 5) == {"sampler.batch_size": (1 - 60 / 70, [5])}, (
        "2 or 3 prompts a process"
    )
    settings.trainer.micro_batch = 30  # 1 or 2 prompts of 6 a process: not always two
    assert _paddings(settings, 5)["trainer.micro_batch"][1] == [15]


def test_what_is_said_of_padding(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--config",
        "smoke",
        "--trainer.prompts_per_iteration",
        "16",
        "--sampler.batch_size",
        "64",
    ]
    words += ["--trainer.micro_batch", "8"]
    for flags in (["--processes", "2"], ["--processes", "2", "--sampler.batch_size", "32"]):
        assert frame.run(plan.main, [*words, *flags]) == 0
    first, second = capsys.readouterr().out.split("An iteration")[1:]
    line = (
        "each process samples 32 images in calls of 64: 50.0% of the sampling is padding; "
        "sampler.batch_size 32 avoids it"
    )
    assert line in first and "avoids it" not in second


@pytest.mark.parametrize("name", plugins.names("configs"))
def test_our_configurations_compute_no_padding(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one process and on two, and those for GPUs on 4 and 8."""
    monkeypatch.setattr(planning, "_outline", lambda settings: None)
    settings = config.load(name)
    on_gpus = settings.model.pretrained not in ("emoji", "emoji_flow", "dna")
    for processes in (1, 2, 4, 8) if on_gpus else (1, 2):
        assert _paddings(settings, processes) == {}


CARD_GB = {"flux": 80}
"""By the beginning of a configuration's name; all others are for a card of 24 GB."""
PROCESSES = {"rwr_sd15": 8}
"""Of a configuration that needs more than one GPU: its 9,950 trajectories are 33 GB."""


@pytest.fixture(scope="module")
def counted() -> dict[str, int]:
    """Memory of each kind of call that was counted before: several of our configurations share
    theirs."""
    return {}


@pytest.mark.parametrize("name", plugins.names("configs"))
def test_every_configuration_of_ours(
    name: str,
    counted: dict[str, int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = config.load(name)
    sizes = wanted.sampler, wanted.trainer.micro_batch, wanted.objective.guidance_scale
    replay = build.objective(wanted).pathwise, wanted.trainer.decode_batch
    kind = f"{wanted.model} {wanted.lora} {sizes} {replay}"
    count, places = imaginary.peak_bytes, iter(range(9))

    def once(compute: Callable[[], object]) -> int:
        key = f"{next(places)} {kind}"
        counted[key] = counted.get(key) or count(compute)
        return counted[key]

    monkeypatch.setattr(imaginary, "peak_bytes", once)
    assert frame.run(plan.main, ["--config", name, "--processes", str(PROCESSES.get(name, 1))]) == 0
    said = capsys.readouterr()
    assert "peak on a CPU" in said.out and said.err == ""
    if wanted.model.pretrained not in ("emoji", "emoji_flow", "dna"):
        ((peak, unit),) = re.findall(r"peak on a GPU +([\d.]+) (GB|MB)", said.out)
        card = CARD_GB.get(name.partition("_")[0], 24)
        assert float(peak) * (1e-3 if unit == "MB" else 1) < 0.9 * card, (
            "the driver, torch's cache and a small reward want the rest"
        )


def test_what_is_said_of_stable_diffusion(capsys: pytest.CaptureFixture[str]) -> None:
    """README's arithmetic, of a model that is not on this machine, shared by 3 processes."""
    words = ["--config", "compressibility_sd15", "--processes=3", "--model.pretrained"]
    assert frame.run(plan.main, [*words, "somebody/unknown"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "32 prompts x 8 samples (a group) = 256" in said
    assert "256 images x 50 trained steps = 12,800" in said
    assert "8 groups = 64 images = 3,200 pairs 8 pairs a call" in said
    assert "10 groups = 80 images or 11 groups = 88 images" in said
    assert "25,600 images" in said and "398, each drawn 8.04 times" in said
    assert "sizes are not known" in said and "peak" not in said


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--trainer.minibatches", "3"], "take 2 or 4, or prompts_per_iteration 6"),
        (
            ["--processes", "5"],
            "trainer.prompts_per_iteration: 4 leaves some of the 5 processes without a",
        ),
        (["--processes"], "--processes: needs a number of at least 1, got nothing"),
        (["--advantage.name", "group", "--trainer.samples_per_prompt", "1"], "take 2 or more"),
        (["--sampler.eta", "0"], "sampler.eta: 0.0 makes every step deterministic"),
        (
            ["--model.pretrained", str(Path(__file__).parent)],
            "is no folder of a pipeline",
        ),
    ],
)
def test_the_impossible_is_refused(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert frame.run(plan.main, ["--config", "smoke", *words]) == 2
    said = capsys.readouterr()
    assert said.out == "" and line in said.err and len(said.err.splitlines()) == 1


def test_sizes_of_stable_diffusion_1() -> None:
    """Published: 859.5, 123.1 and 83.7 million; diffusers' LoRA of rank 4 has 797,184."""
    pipeline = StableDiffusion.outline(
        "stable-diffusion-v1-5/stable-diffusion-v1-5", "bf16", whole=False
    )
    modules = [pipeline.unet, pipeline.text_encoder, pipeline.vae]
    counts = [sum(parameter.numel() for parameter in module.parameters()) for module in modules]
    assert counts == [859_520_964, 123_060_480, 83_653_863]
    policy = StableDiffusion(pipeline, dtype="bf16", lora=helpers.adapter())
    assert sum(parameter.numel() for parameter in policy.parameters().values()) == 797_184
    assert policy.latent_shape == (4, 64, 64)


def test_live_bytes_of_a_chain() -> None:
    """Matrices of 1 MB: a layer needs its input and output; backward, three saved results and a
    gradient."""
    weight, x = torch.zeros(500, 500), torch.zeros(500, 500)
    assert imaginary.peak_bytes(lambda: ((x @ weight) @ weight) @ weight) == 2_000_000
    kept: list[torch.Tensor] = []
    more = imaginary.peak_bytes(lambda: kept.extend([x.exp(), x.view(-1)[:9], x.exp()]))
    assert more == 2_000_000
    leaf = torch.zeros(500, 500, requires_grad=True)
    assert imaginary.peak_bytes(lambda: leaf.exp().exp().exp().sum().backward()) == 4_000_008


MEASURED = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from ddpo import config, finetune
from ddpo.planning import memory, plan

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))

runs = [config.parse(argv) for argv in json.loads(sys.argv[1])]
interpreter, peaks = status("VmRSS"), []
for settings in runs:
    finetune(settings)
    peaks.append(status("VmHWM"))
for peak, settings in zip(peaks, runs):
    print(json.dumps([peak, memory.on_cpu(memory.footprint(plan.plan(settings)), interpreter)]))
"""


def measured_and_planned(folder: Path, *runs: list[str]) -> list[list[float]]:
    """Peak bytes of a process that trains for an iteration, and what the plan says of it.

    Of several runs in one process, each takes more than those before it.
    """
    words = ["--config", "smoke", "--trainer.iterations", "1"]
    # all 64 pairs in the one call that the peak is of: another would only take longer
    words += ["--trainer.micro_batch", "64", "--trainer.minibatches", "1", "--log.images", "0"]
    each = [[*words, "--run_dir", str(folder / str(i)), *run] for i, run in enumerate(runs)]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, json.dumps(each)],
        env=helpers.one_thread(),
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()[-len(runs) :]]


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@linux
def test_memory_is_within_a_quarter(tmp_path: Path) -> None:
    """The update's pairs in one call; while sampling, a chunk's step and all images' gradients."""
    ways = [["--trainer.while_sampling", way] for way in ("true", "false")]
    for measured, planned in measured_and_planned(tmp_path, *ways):
        assert 0.75 < planned / measured < 1.25


@linux
@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux"])
def test_memory_of_every_family_is_within_a_quarter(family: str, tmp_path: Path) -> None:
    """At two sizes, with a text encoder that is trained: most is what a call leaves for its
    backward pass."""
    options = {"positions": 24} if family == "sd3" else {}
    more = ["--model.pretrained", families.saved(family, tmp_path / "base", **options)]
    more += ["--lora.text_encoder", "true"]
    more += ["--sampler.name", "ddim" if family == "sdxl" else "flow_sde"]
    more += ["--eval_rewards", "[]", "--rewards", "[{name: jpeg_compressibility}]"]
    sizes = [[*more, "--model.size", size] for size in ("[48, 64]", "[96, 64]")]
    for measured, planned in measured_and_planned(tmp_path, *sizes):
        assert 0.75 < planned / measured < 1.25


@pytest.mark.parametrize("medium", ["pictures", "letters"])
def test_what_a_long_replay_takes_follows_from_a_short_one(medium: str, tmp_path: Path) -> None:
    """As much, to a percent, as when all of its steps are gone through."""
    if medium == "letters":
        words = ["--objective", "{name: drakes, last_steps: 7}", "--sampler.num_steps", "8"]
        settings = config.parse(dna_runs.smoke(tmp_path, *words))
    else:
        options = replayed(last_steps=7) | {"sampler__num_steps": 8}
        settings = helpers.settings(tmp_path, **options)
    told = planning.plan(settings)
    replay = told.objective.pathwise
    assert replay is not None
    whole = imaginary.peak_bytes(memory._replay(told, replay, 7))
    assert memory._update(told) == pytest.approx(whole, rel=0.01)


PARTS = {
    "stabilityai/stable-diffusion-xl-base-1.0": ("sdxl", [2_567_463_684, 123_060_480, 694_659_840]),
    "stabilityai/stable-diffusion-3-medium-diffusers": ("sd3", [2_028_328_000]),
    "black-forest-labs/FLUX.1-dev": ("flux", [11_901_408_320]),
}
"""Published numbers of parameters: SDXL's UNet and two CLIPs, the transformers of the others."""


@pytest.mark.parametrize("name", PARTS)
def test_sizes_of_published_models(name: str) -> None:
    family, counts = PARTS[name]
    pipeline = FAMILIES[family][0].outline(name, "bf16", whole=False)
    network = pipeline.unet if family == "sdxl" else pipeline.transformer
    modules = [network, pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)]
    for module, count in zip(modules, counts, strict=False):
        assert sum(parameter.numel() for parameter in module.parameters()) == count


def test_offloaded_networks_only_visit(tmp_path: Path) -> None:
    """The weights that stay, the largest visitor; the main memory holds all of them anyway."""
    base = families.saved("sd3", tmp_path / "base")
    flags = {"sampler__name": "flow_sde", "sampler__options": {}, "model__pretrained": base}
    here, away = (
        memory.footprint(planning.plan(helpers.settings(tmp_path, **flags, model__options=options)))
        for options in ({"max_sequence_length": 8}, {"max_sequence_length": 8, "offload": True})
    )
    assert here["offloaded"] == 0 and away["offloaded"] > 0
    assert here["weights"] == away["weights"] + away["offloaded"]
    assert memory.on_cpu(here, 0) == memory.on_cpu(away, 0)
    assert away["peak"] < here["peak"]


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_the_optimizer_is_counted(optimizer: str, tmp_path: Path) -> None:
    """What a run writes down of it."""
    run = tmp_path / "run"
    settings = helpers.settings(run, trainer__optimizer=optimizer, trainer__iterations=1)
    finetune(settings)
    newest = sorted((run / "checkpoints").iterdir())[-1]
    tensors = [item for file in newest.glob("*.safetensors") for item in load_file(file).items()]
    written = sum(tensor.nbytes for key, tensor in tensors if not key.startswith("step/"))
    assert memory.footprint(planning.plan(settings))["training"] == written


def test_a_plan_needs_no_memory_for_weights() -> None:
    """Trained whole, Stable Diffusion 1.5 has 3.4 GB of weights and a copy of them as reference.

    The peak is that of the new program: `ru_maxrss` has that of the process in it that started it.
    """
    code = """
import pathlib
import re
from ddpo import config
from ddpo.planning import plan

plan.plan(config.parse(["--config", "aesthetic_sd15", "--lora", "null"]))
status = pathlib.Path("/proc/self/status").read_text()
print(1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(said.stdout) < 2e9
