"""benchmarks/gpu.py at toy sizes: every part measures, and a part that fails stops no other."""

import json
import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import families
import gpu
import gpu_model
import gpu_more

from ddpo.models._shared.architectures import known

PARTS = ["peak", "sampling", "training", "waits", "attention", "bare"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The JSON of a run in which the part attention fails."""
    file = tmp_path_factory.mktemp("gpu") / "tiny.json"

    def fails(bench):
        yield "before", {"rows": 1}
        raise RuntimeError("planted")

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(gpu_more.OF_MODEL, "attention", fails)
        patch.setattr(
            sys, "argv", ["gpu.py", "--tiny", "--out", str(file), "--parts", ",".join(PARTS)]
        )
        gpu.main()
    return json.loads(file.read_text())


def test_every_part_measures_and_a_failure_stops_no_other(measured):
    assert measured["failed"].keys() == {"attention tiny fp32"}
    assert "planted" in measured["failed"]["attention tiny fp32"]
    assert measured["measured"].keys() == set(PARTS)
    assert measured["measured"]["attention"]["tiny fp32"].keys() == {"before"}
    assert {"torch", "commit", "python"} <= measured["runs"][0].keys()


def test_flops_are_those_that_plain_counting_gives(measured):
    """Backward through frozen weights with a LoRA takes about as much again, not twice."""
    forward = measured["measured"]["sampling"]["tiny fp32"]["flops"]["forward_guided"]
    both = measured["measured"]["training"]["tiny fp32"]["flops"]["forward_and_backward_guided"]
    assert 1.9 < both / forward < 2.4
    whole = measured["measured"]["sampling"]["tiny fp32"]["whole"]
    decode = measured["measured"]["sampling"]["tiny fp32"]["flops"]["decode"]
    total = whole["images"] * (whole["steps"] * forward + decode)
    assert whole["tflops"] * 1e12 * whole["seconds"] == pytest.approx(total)


def test_the_first_pass_has_the_recorded_ratios(measured):
    found = measured["measured"]["training"]["tiny fp32"]
    for micro, same in ((1, False), (2, True)):
        ratios = found[f"ratio_{micro}"]
        assert ratios["same_shape"] is same and ratios["gate_holds"]
        assert ratios["ratio_max_dev"] < 1e-6 and ratios["ratio_mean"] == pytest.approx(1)
        assert math.isfinite(ratios["loss"]) and found[f"micro_{micro}"]["pairs_per_s"] > 0


def test_an_unknown_part_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", "x.json", "--parts", "peek"])
    with pytest.raises(SystemExit) as stop:
        gpu.main()
    assert stop.value.code == 2 and "'peek' is none of peak" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(set(gpu_model.ARCHITECTURES) - {"tiny"}))
def test_each_architecture_is_known_with_a_sampler_of_its_kind(name):
    """Random weights need no files: the sizes follow from the name."""
    found = gpu_model.settings(name, "bf16", {"sampler.num_steps": "7"})
    parts = known(found.model.pretrained)
    assert parts and found.sampler.num_steps == 7
    flow = parts["scheduler"][0].startswith("FlowMatch")
    assert found.sampler.name == ("flow_sde" if flow else "ddim")


def test_a_transformer_is_measured_as_a_unet_is(monkeypatch, tmp_path):
    """A toy of Stable Diffusion 3, a flow; what is a UNet's alone is left out."""
    file = tmp_path / "flow.json"
    monkeypatch.setattr(gpu_model, "pipeline", lambda *_: families.tiny_sd3())
    parts = "sampling,training,attention"
    words = ["gpu.py", "--tiny", "--archs", "sd35", "--dtypes", "fp32", "--out", str(file)]
    monkeypatch.setattr(sys, "argv", [*words, "--parts", parts])
    gpu.main()
    data = json.loads(file.read_text())
    assert not data["failed"]
    found = {part: cases["sd35 fp32"] for part, cases in data["measured"].items()}
    assert found["training"]["micro_2"]["pairs_per_s"] > 0
    assert found["training"]["ratio_2"]["gate_holds"]
    assert found["attention"].keys() == {"left_out"}
