"""Scores by the kind of the prompts: in samples.jsonl, in results.json and on the page."""

import json
from pathlib import Path

import helpers
import pytest

from ddpo.__main__ import main
from ddpo.evaluation import results

ROWS = [
    *(("counting", f"a{i}", 0.0 if i else 1.0) for i in range(4)),
    *(("position", f"b{i}", 1.0) for i in range(2)),
]


def test_every_kind_counts_alike_in_the_mean() -> None:
    """1/4 of four and 2/2 of two: 0.625, where the mean over all samples is 3/6."""
    rows = [
        {"set": "s", "task": task, "prompt": prompt, "seed": 0, "column": column}
        | {"scores": {"right": value + (column == "tuned")}}
        for task, prompt, value in ROWS
        for column in ("base", "tuned")
    ]
    found = results.summarize(rows)
    own = found["tasks"]["s"]["right"]
    assert {task: entry["base"]["mean"] for task, entry in own["each"].items()} == {
        "counting": 0.25,
        "position": 1.0,
    }
    assert own["mean"] == {"base": 0.625, "tuned": 1.625}
    assert own["each"]["counting"]["tuned"]["difference"]["mean"] == 1.0
    assert found["sets"]["s"]["right"]["base"]["mean"] == 0.5
    bare = [{key: value for key, value in row.items() if key != "task"} for row in rows]
    assert results.summarize(bare)["tasks"] == {}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tasks")
    kinds = ["colors", "colors", "counting", None]
    lines = [{"prompt": f"a fox {i}", "tag": kind} for i, kind in enumerate(kinds)]
    lines[3]["category"] = "Animals"  # the next name that says a kind
    text = "\n".join(json.dumps(line) for line in lines)
    (root / "kinds.jsonl").write_text(text)
    out = root / "out"
    argv = ["evaluate", helpers.pipeline_folder(), "--prompts", str(root / "kinds.jsonl")]
    argv += ["--eval_rewards", "sharpness", "--sampler.num_steps", "2", "--out", str(out)]
    assert main(argv) == 0
    return out


def test_results_and_page_have_them(evaluated: Path) -> None:
    lines = (evaluated / "evaluation/samples.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    kinds = {row["prompt"]: row["task"] for row in rows}
    assert [*kinds.values()] == ["colors", "colors", "counting", "Animals"]
    found = json.loads((evaluated / "evaluation/results.json").read_bytes())
    own = found["tasks"]["kinds"]["sharpness"]["each"]
    (column,) = found["columns"]
    for kind, entry in own.items():
        values = [row["scores"]["sharpness"] for row in rows if row["task"] == kind]
        assert entry[column]["mean"] == pytest.approx(sum(values) / len(values))
    again = results.recompute(evaluated / "evaluation")["tasks"]
    assert again == found["tasks"]
    page = (evaluated / "index.html").read_text()
    table = page.partition("<h2>By task</h2>")[2].partition("</table>")[0]
    for words in ("colors", "counting", "Animals", "<b>mean over tasks</b>", "sharpness"):
        assert words in table
    assert "has not been evaluated" not in page and "<h2>Results</h2>" in page  # of one column
    entry = found["sets"]["kinds"]["sharpness"][column]
    assert f"{entry['mean']:.4f}"[:6] in page.partition("<h2>Results</h2>")[2].partition("<h2>")[0]
    assert "saturation" not in table  # a guard
