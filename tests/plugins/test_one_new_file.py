"""A sampler, an advantage and a model family of a user: one file each, and everything works with
them."""

import json
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ddpo.__main__ import main
from ddpo.records import metrics

SAMPLER = '''
    """A sampler of mine."""

    import torch

    from ddpo.objectives import PositiveFloat
    from ddpo.samplers import NoiseSchedule, Steps, gaussian_steps


    def halfway(schedule: NoiseSchedule, num_steps: int, *, noise: PositiveFloat = 0.1) -> Steps:
        """Steps evenly through all timesteps.

        `noise` is the std of each step over the noise after it.
        """
        timesteps = torch.linspace(len(schedule) - 1, 1, num_steps).long()
        following = torch.cat([timesteps[1:], timesteps.new_zeros(1)])
        signal, sigma = schedule.levels(following)
        std = noise * sigma
        direction = (sigma.square() - std.square()).sqrt()
        nothing = torch.zeros_like(signal)
        return gaussian_steps(
            schedule, timesteps, x0=signal, epsilon=direction, x=nothing, variance=std.square()
        )
    '''

ADVANTAGE = '''
    """An advantage of mine."""

    from ddpo.objectives import PositiveFloat


    class running:
        """Rewards above a running mean."""

        def __init__(self, *, decay: PositiveFloat = 0.5) -> None:
            self.decay, self.mean = decay, 0.0

        def __call__(self, reward, keys, group):
            self.mean = self.decay * self.mean + (1 - self.decay) * reward.mean().item()
            return reward - self.mean

        def state_dict(self):
            return {"mean": [self.mean]}

        def load_state_dict(self, state):
            (self.mean,) = state["mean"]
    '''

MODEL = '''
    """A family of mine: pictures are their own latents, a prompt is its length."""

    from contextlib import contextmanager

    import torch
    from safetensors.torch import load_file, save_file
    from torch import nn

    from ddpo.errors import UserError
    from ddpo.parallel.seeds import generator
    from ddpo.samplers import NoiseSchedule


    class lengths:
        """One convolution, shifted by the length of the prompt; `width` pixels each way."""

        latent_shape, half_precision = (3, 16, 16), False
        reader, trial_sampler = "safetensors", "ddim"

        def __init__(
            self, pretrained, device, dtype, loras, lora, train_text_encoder,
            gradient_checkpointing, *, width: int = 16,
        ):
            self.device, self.image_size = torch.device(device), width
            self.latent_shape = (3, width, width)
            torch.manual_seed(0)
            self.network, self.shift = nn.Conv2d(3, 3, 3, padding=1), nn.Parameter(torch.zeros(3))
            self.modules, self.snapshots = [self.network], {}
            self.snapshots["base"] = {k: v.detach().clone() for k, v in self.parameters().items()}
            angle = torch.linspace(0.02, 1.55, 100, dtype=torch.float64)
            self.schedule = NoiseSchedule(
                angle.cos(), angle.sin(), (1.0, 0.0), "epsilon",
                lambda count: torch.arange(1, count + 1).flip(0) * (100 // count) - 1,
            )

        @staticmethod
        def outline(pretrained, dtype, whole):
            return pretrained

        def parameters(self):
            return {"shift": self.shift, **dict(self.network.named_parameters())}

        def condition(self, prompts, negative_prompt=None):
            return torch.tensor([float(len(prompt.text)) for prompt in prompts])

        def predict(self, latents, timesteps, condition, guidance_scale):
            shifted = latents + 0.01 * condition.view(-1, 1, 1, 1) * self.shift.view(1, 3, 1, 1)
            return self.network(shifted)

        def encode(self, images):
            return 2 * images - 1

        def decode(self, latents):
            return (latents / 2 + 0.5).clamp(0, 1)

        @contextmanager
        def weights(self, name):
            own = {key: parameter.data for key, parameter in self.parameters().items()}
            try:
                for key, parameter in self.parameters().items():
                    parameter.data = own[key] if name == "present" else self.snapshots[name][key]
                yield
            finally:
                for key, parameter in self.parameters().items():
                    parameter.data = own[key]

        def save(self, folder):
            folder.mkdir(parents=True, exist_ok=True)
            weights = {key: value.detach().clone() for key, value in self.parameters().items()}
            save_file(weights, folder / "mine.safetensors")

        def check_format(self, file_format):
            if file_format != "mine":
                raise UserError(f"--format: {file_format}: lengths is exported as mine")

        def export(self, file_format, folder, name):
            self.save(folder)

        def read_back(self, file_format, folder, pretrained, trial):
            weights = load_file(folder / "mine.safetensors")
            plain = ("cpu", "fp32", [], None, False, False)
            other = lengths(pretrained, *plain, width=self.image_size)
            other.snapshots["read"] = weights
            from ddpo import samplers
            from ddpo.rollout.sample import Sampler, sample
            steps = samplers.build("ddim", other.schedule, trial.num_steps, eta=trial.eta)
            sampler = Sampler(
                steps, trial.guidance_scale, len(trial.prompts), trial.negative_prompt
            )
            with torch.no_grad(), other.weights("read"):
                (part,) = sample(other, sampler, trial.prompts, trial.keys)
            return part.images, weights

        def merged_weights(self):
            return {key: parameter.detach() for key, parameter in self.parameters().items()}
    '''


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mine")
    files = {"samplers/halfway": SAMPLER, "advantages/running": ADVANTAGE, "models/lengths": MODEL}
    for name, text in files.items():
        (folder / name).parent.mkdir()
        (folder / f"{name}.py").write_text(textwrap.dedent(text).lstrip())
    return folder


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command adds to the search path ends with the test."""
    monkeypatch.setenv("DDPO_PLUGINS", "")


def flags(folder: Path, run: Path) -> list[str]:
    return [
        "--config",
        "smoke",
        "--plugins",
        f"[{folder}]",
        "--run_dir",
        str(run),
        "--model.name",
        "lengths",
        "--sampler.name",
        "halfway",
        "--advantage.name",
        "running",
        "--lora",
        "null",
        "--model.width",
        "20",
        "--sampler.noise",
        "0.3",
        "--advantage.decay",
        "0.75",
        "--sampler.num_steps",
        "3",
        "--trainer.iterations",
        "2",
        "--checkpoint.every",
        "1",
        "--eval_rewards",
        "[]",
        "--trainer.lr",
        "1e-3",
    ]


def test_listed(
    mine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DDPO_PLUGINS", str(mine))
    for kind, line in (
        ("samplers", "halfway     Steps evenly through all timesteps"),
        ("advantages", "running     Rewards above a running mean."),
        ("models", "lengths  "),
    ):
        assert main(["list", kind]) == 0
        listed = [" ".join(row.split()) for row in capsys.readouterr().out.splitlines()]
        assert any(row.startswith(" ".join(line.split())) for row in listed), kind


def test_explained_by_help(mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", *flags(mine, tmp_path / "run"), "--help"])
    assert not ended.value.code
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "--sampler.noise",
        "the std of each step over",
        "--advantage.decay",
        "--model.width",
    ):
        assert words in text


def test_planned_with_its_memory(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *flags(mine, tmp_path / "run")]) == 0
    text = capsys.readouterr().out
    assert "peak on a GPU" in text and "unknown" not in text and not (tmp_path / "run").exists()


def test_trained_resumed_evaluated_exported(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    straight, run = tmp_path / "straight", tmp_path / "run"
    assert main(["train", *flags(mine, straight), "--trainer.iterations", "3"]) == 0
    assert main(["train", *flags(mine, run)]) == 0
    assert main(["train", "--resume", str(run), "--trainer.iterations", "3"]) == 0
    one, other = (
        load_file(each / "checkpoints/000003/parameters.safetensors") for each in (straight, run)
    )
    assert all(torch.equal(one[key], other[key]) for key in one), "the advantage's state too"
    rows = metrics.read(run / "metrics.jsonl")
    assert [row["iteration"] for row in rows] == [1, 2, 3]
    assert main(["evaluate", str(run)]) == 0
    results = json.loads((run / "evaluation" / "results.json").read_text())
    assert results["config"]["sampler"]["noise"] == 0.3
    capsys.readouterr()
    assert main(["export", str(run), "--to", str(tmp_path / "x"), "--format", "kohya"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "ddpo: --format: kohya: lengths is exported as mine"
    ]
    assert main(["export", str(run), "--to", str(tmp_path / "x"), "--format", "mine"]) == 0
    weights = load_file(tmp_path / "x" / "mine.safetensors")
    assert all(torch.equal(weights[key], one[key]) for key in one)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        (["--sampler.noise", "0"], "sampler.noise"),
        (["--sampler.nois", "0.2"], "did you mean noise?"),
        (["--sampler.noise", "2"], "sampler halfway"),
        (["--advantage.decay", "-1"], "advantage.decay"),
        (["--sampler.name", "halfways"], "did you mean halfway?"),
    ],
)
def test_mistakes_in_their_options(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: list[str], words: str
) -> None:
    assert main(["train", *flags(mine, tmp_path / "run"), *flag]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line and not (tmp_path / "run").exists()
