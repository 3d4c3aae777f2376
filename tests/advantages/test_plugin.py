"""An advantage from a plugin folder is listed, explained, planned, trained and resumed like
ours."""

from pathlib import Path

import helpers
import pytest

from ddpo import plugins
from ddpo.__main__ import main
from ddpo.records import checkpoint, metrics

SOURCE = '''
"""An advantage with a memory."""


class above:
    """A = r - the mean of all rewards so far, times `scale`.

    `scale` is a factor without a unit.
    """

    compares = True

    def __init__(self, *, scale: float = 1.0):
        self.scale, self.sum, self.count = scale, 0.0, 0

    def __call__(self, reward, keys, group):
        self.sum += reward.sum().item()
        self.count += len(reward)
        return self.scale * (reward - self.sum / self.count)

    def state_dict(self):
        return {"sum": self.sum, "count": self.count}

    def load_state_dict(self, state):
        self.sum, self.count = state["sum"], state["count"]
'''


def test_one_new_file_is_all_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(plugins.VARIABLE, str(tmp_path / "mine"))
    (tmp_path / "mine" / "advantages").mkdir(parents=True)
    (tmp_path / "mine" / "advantages" / "above.py").write_text(SOURCE)
    flags = ["--advantage.name", "above", "--advantage.scale", "2", "--model.dtype", "fp32"]
    argv = helpers.smoke(
        tmp_path / "whole", *flags, "--trainer.iterations", "2", "--checkpoint.every", "1"
    )

    assert main(["list", "advantages"]) == 0
    assert "above       A = r - the mean of all rewards so far" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["train", *argv, "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "--advantage.scale" in told and "a factor without a unit" in told
    assert main(["plan", *argv]) == 0
    assert main(["train", *argv, "--advantage.scal", "2"]) == 2
    assert "did you mean scale?" in capsys.readouterr().err
    assert main(["train", *argv, "--trainer.samples_per_prompt", "1"]) == 2
    assert "advantage above compares within a prompt" in capsys.readouterr().err

    assert main(["train", *argv]) == 0
    begun = tmp_path / "begun"
    assert main(["train", *argv, "--run_dir", str(begun), "--trainer.iterations", "1"]) == 0
    assert main(["train", "--resume", str(begun), "--trainer.iterations", "2"]) == 0
    rows = [metrics.read(run / "metrics.jsonl") for run in (tmp_path / "whole", begun)]
    for name in ("reward/mean", "loss", "grad_norm", "kl_ref"):
        assert [row[name] for row in rows[0]] == [row[name] for row in rows[1]]
    states = [
        checkpoint.load(run / "checkpoints" / "000002")[1] for run in (tmp_path / "whole", begun)
    ]
    assert (
        states[0]["advantage"] == states[1]["advantage"] and states[0]["advantage"]["count"] == 16
    )
