"""`ddpo train --profile`: the table adds up, and the run is the same as without."""

import gzip
import json
from pathlib import Path

import helpers
import pytest
import torch

from ddpo.commands import frame
from ddpo.records import metrics
from ddpo.runs import profile
from ddpo.train import main


def test_one_iteration_is_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--trainer.iterations", "2", "--checkpoint.every", "2"]
    assert frame.run(main, [*helpers.smoke(tmp_path / "run", *flags), "--profile"]) == 0
    table = json.loads((tmp_path / "run" / "profile" / "summary.json").read_text())
    phases = table["phases"]
    assert list(phases) == ["sampling", "decoding", "waiting", "update", "other", "iteration"]
    parts = [row["seconds"] for name, row in phases.items() if name != "iteration"]
    row = metrics.read(tmp_path / "run" / "metrics.jsonl")[1]
    assert sum(parts) == pytest.approx(phases["iteration"]["seconds"]) and min(parts) >= 0
    assert phases["iteration"]["seconds"] == pytest.approx(row["time/total"], rel=0.2)
    update = phases["update"]
    assert update["tflops_per_s"] == pytest.approx(update["tflop"] / update["seconds"])
    assert update["mfu"] == pytest.approx(update["tflops_per_s"] / table["peak_tflops_per_s"])
    with gzip.open(tmp_path / "run" / "profile" / "trace.json.gz") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {"ddpo: sampling", "ddpo: decoding", "ddpo: update", "aten::linear"} <= names


def test_phases_within_others_are_taken_off() -> None:
    spans = {"sampling": 6.0, "decoding": 1.0, "waiting": 2.0, "update": 3.0, "iteration": 10.0}
    found = profile.parts(spans)
    assert found["sampling"] == 3 and found["other"] == 1 and found["iteration"] == 10


def test_the_yardstick_is_the_better_of_two_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([1.0, 1e-3])
    monkeypatch.setattr(profile, "_least_seconds", lambda *_: next(seconds))
    found = profile.peak_flops(torch.device("cpu"), torch.float32)
    assert found == 2 * (8 * 64 * 64) * 128 * 128 * 9 / 1e-3
