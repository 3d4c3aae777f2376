"""Several machines: a launcher on each, one meeting point. Here both are this machine."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import helpers

from ddpo.__main__ import main
from ddpo.records import metrics

FILE = Path(__file__).parents[2] / "configs" / "accelerate" / "multi_node.yaml"


def test_two_machines_are_one_run(tmp_path: Path) -> None:
    """Two launchers with our file, a process each; the images and the update of one process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    meeting = ["--main_process_ip", "127.0.0.1", "--main_process_port", port]
    smoke = ["--trainer.iterations", "1", "--log.images", "0"]
    nodes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(FILE)),
                *("--num_processes", "2", "--machine_rank", rank, *meeting, "-m", "ddpo.train"),
                *helpers.smoke(tmp_path / "two", *smoke),
            ],
            env=helpers.one_thread(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    told = [node.communicate(timeout=300)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], told
    assert json.loads((tmp_path / "two" / "provenance.json").read_text())["num_processes"] == 2
    assert main(["train", *helpers.smoke(tmp_path / "one", *smoke)]) == 0
    (two,), (one,) = (metrics.read(tmp_path / name / "metrics.jsonl") for name in ("two", "one"))
    assert two["reward/mean"] == one["reward/mean"]
    assert abs(two["grad_norm"] - one["grad_norm"]) <= 1e-5 * one["grad_norm"]
