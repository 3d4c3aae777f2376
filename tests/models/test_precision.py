"""model.dtype: auto, and the attention that goes with a precision."""

import time
from pathlib import Path

import helpers
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from ddpo import config
from ddpo.commands import plan
from ddpo.models import _precision
from ddpo.models._precision import Precision
from ddpo.runs import settling
from ddpo.runs.session import Session


def refuse(dtype: Precision) -> None:
    raise AssertionError(f"{dtype} was built, where there is nothing to time")


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "fp16")])
def test_a_gpu_takes_half_precision(
    has_bf16: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    assert _precision.choose(torch.device("cuda"), refuse) == expected  # pyright: ignore[reportArgumentType]


def test_a_cpu_without_bf16_takes_fp32_untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_precision, "has_bf16", lambda: False)
    assert _precision.choose(torch.device("cpu"), refuse) == "fp32"  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("bf16_s", "expected"), [(0.5, "bf16"), (0.95, "fp32"), (1.5, "fp32")])
def test_a_cpu_takes_bf16_where_it_is_clearly_faster(
    bf16_s: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []
    monkeypatch.setattr(_precision, "has_bf16", lambda: True)
    monkeypatch.setattr(_precision, "timed", lambda policies: [1.0, bf16_s])
    assert _precision.choose(torch.device("cpu"), lambda dtype: built.append(dtype)) == expected  # pyright: ignore[reportArgumentType]
    assert built == ["fp32", "bf16"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("avx512f avx512_bf16", True), ("asimd bf16", True), ("avx512f avx512_fp16", False)],
)
def test_instructions_for_bf16(flags: str, expected: bool, tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    assert not _precision.has_bf16(file)
    file.write_text(f"processor\t: 0\nflags\t\t: fpu {flags} sse\n")
    assert _precision.has_bf16(file) == expected


def test_the_slower_policy_takes_longer() -> None:
    quick, slow = helpers.policy(), helpers.policy()
    predict = slow.predict

    def slowly(*arguments: object) -> torch.Tensor:
        time.sleep(0.2)
        return predict(*arguments)  # pyright: ignore[reportArgumentType]

    slow.predict = slowly  # pyright: ignore[reportAttributeAccessIssue]
    seconds = _precision.timed([quick, slow])
    assert seconds[1] > seconds[0] and seconds[1] > 0.2
    assert all(parameter.grad is None for parameter in quick.parameters().values())


def test_a_run_keeps_what_auto_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a resume that says auto again goes on in it, whatever auto would take now."""
    settings = helpers.settings(tmp_path / "run", model__dtype="auto", trainer__iterations=1)
    monkeypatch.setattr(_precision, "choose", lambda device, build: "bf16")
    Session(settings).train()
    kept = config.load(tmp_path / "run" / "config.yaml")
    assert kept.model.dtype == "bf16" and settings.model.dtype == "auto"
    monkeypatch.setattr(_precision, "choose", lambda device, build: "fp32")
    settings.trainer.iterations = 2
    session = Session(settings, resume=True)
    assert session.settings.model.dtype == "bf16" and session.trainer.policy.half_precision


def test_all_ranks_take_the_first_ones_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ddpo.building.build.precision", lambda settings: "fp32")
    monkeypatch.setattr("ddpo.parallel.ranks.gather", lambda items: ["bf16", *items])
    settings, _ = settling.settled(helpers.settings(tmp_path, model__dtype="auto"))
    assert settings.model.dtype == "bf16"


def test_a_plan_of_auto_says_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = helpers.smoke(tmp_path / "run", "--model.dtype", "auto")
    plan.main(flags)
    assert "in bf16 on a GPU and fp32 on a CPU, 1 process" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("dtype", "attention"), [("fp32", AttnProcessor2_0), ("bf16", AttnProcessor)]
)
def test_attention_of_a_precision_on_a_cpu(dtype: str, attention: type) -> None:
    processors = helpers.policy(dtype=dtype).unet.attn_processors.values()
    assert {type(processor) for processor in processors} == {attention}


def test_fused_and_plain_attention_agree() -> None:
    """Predictions and gradients to 1e-5: which of them is taken is a matter of speed."""
    fused, plain = helpers.policy(moved=0.3), helpers.policy(moved=0.3)
    plain.unet.set_attn_processor(AttnProcessor())
    noise = torch.Generator().manual_seed(0)
    latents = torch.randn(5, *fused.latent_shape, generator=noise)
    timesteps = torch.tensor([1, 200, 400, 700, 999])
    outputs, gradients = [], []
    for policy in (fused, plain):
        condition = policy.condition(helpers.as_prompts(["a fox"] * 5), "")
        outputs.append(policy.predict(latents, timesteps, condition, 3.0))
        outputs[-1].square().sum().backward()
        gradients.append(helpers.flat_gradient(policy))
    assert helpers.difference(outputs[0].detach(), outputs[1].detach()) < 1e-5
    assert helpers.difference(*gradients) < 1e-5
