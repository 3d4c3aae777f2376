"""What a vision-language model reads of a user's preferences: which pairs, which states, what is
refused."""

import json
from pathlib import Path
from typing import Any

import helpers
import numpy as np
import pytest
import torch
from PIL import Image

from ddpo import config, prompts, tastes
from ddpo.__main__ import main
from ddpo.building import build
from ddpo.building.personal import source
from ddpo.config import checks
from ddpo.errors import UserError
from ddpo.evaluation.personal.users import Column, check_comparable, win_rates
from ddpo.prompts import PromptSet
from ddpo.rewards._vlm import EMBEDDED_QUESTION, VLM
from ddpo.runs.finished import Run
from ddpo.tastes import Known
from ddpo.tastes._pairs import Pair, check_apart, read

APART: dict[str, Any] = {"pretrained": "emoji", "reading": "apart", "pooling": "mean", "layer": 1}


def write(file: Path, users: list[str], pairs: int = 6, start: int = 0) -> Path:
    """Pairs of random pictures, all different, and the file that names them."""
    rows, number = [], start
    for user in users:
        for _ in range(pairs):
            names = [f"{file.stem}{number + i}.png" for i in range(2)]
            for i, name in enumerate(names):
                noise = np.random.default_rng(number + i)
                pixels = noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).resize((64, 64)).save(file.parent / name)
            number += 2
            text = ("a fox", "an owl")[len(rows) % 2]
            row = {"user": user, "prompt": text, "chosen": names[0], "rejected": names[1]}
            rows.append(json.dumps(row))
    file.write_text("\n".join(rows) + "\n")
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("users")
    write(root / "seen.jsonl", ["al", "bo"])
    write(root / "four.jsonl", ["cy"], pairs=4, start=100)
    write(root / "two.jsonl", ["cy"], pairs=2, start=200)
    return root


def known(folder: Path, rows: PromptSet | None = None, tokens: int = 1) -> Known:
    rows = rows or prompts.load(path=folder / "seen.jsonl", repeats=True)
    return Known(rows, ["a"], folder, tokens, torch.device("cpu"))


def test_apart_is_the_mean_difference_of_states(folder: Path) -> None:
    """By hand: the captioner's own states of each picture, averaged over its tokens."""
    made = tastes.build("vlm", known(folder), **APART)
    told = read(folder / "four.jsonl")
    captioner = VLM("emoji", "here", "cpu", torch.float32)

    def mean(file: Path) -> torch.Tensor:
        inputs = captioner.inputs([Image.open(file)], [EMBEDDED_QUESTION])
        with torch.no_grad():
            output = captioner.model(**inputs, output_hidden_states=True)
        return output.hidden_states[1][0].mean(0)

    difference = sum(mean(pair.chosen) - mean(pair.rejected) for pair in told) / 4
    assert isinstance(difference, torch.Tensor)
    expected = difference / difference.square().mean().sqrt()
    torch.testing.assert_close(made.of(told), expected[None], rtol=1e-4, atol=1e-5)
    swapped = [Pair(pair.prompt, pair.rejected, pair.chosen) for pair in told]
    torch.testing.assert_close(made.of(swapped), -expected[None], rtol=1e-4, atol=1e-5)


def test_together_is_the_end_of_one_chat(folder: Path) -> None:
    made = tastes.build("vlm", known(folder, tokens=3), pretrained="emoji", pooling="last")
    told = read(folder / "four.jsonl")
    one, other = made.of(told), made.of(told[::-1])
    assert one.shape == made.shape == (3, 128)
    assert not torch.allclose(one, other)  # the order in which pairs are read counts


def test_a_pair_is_never_in_its_own_context(folder: Path) -> None:
    made: Any = tastes.build("vlm", known(folder), **APART)
    rows = known(folder).prompts
    for row in rows:
        own = {str(row.metadata["chosen"]), str(row.metadata["rejected"])}
        contexts = [made.users.context(row, number) for number in range(6)]
        for context in contexts:
            files = {file.name for pair in context for file in (pair.chosen, pair.rejected)}
            assert len(context) == 4 and not files & own
            assert {pair.chosen for pair in context} <= {
                pair.chosen for pair in made.users.pairs[row.metadata["user"]]
            }
        assert len({tuple(context) for context in contexts}) > 1
        assert contexts[0] == made.users.context(row, 0)


def planted(folder: Path, name: str, change: dict[str, str]) -> PromptSet:
    """A user's first pair once more at the end, its pictures under other names."""
    lines = (folder / "seen.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    for key in ("chosen", "rejected"):
        copy = folder / f"copy_{name}_{key}.png"
        copy.write_bytes((folder / first[key]).read_bytes())
        first[key] = copy.name
    first |= {key: first[value] for key, value in change.items()}
    file = folder / f"{name}.jsonl"
    file.write_text("\n".join([*lines, json.dumps(first)]) + "\n")
    return prompts.load(path=file, repeats=True)


@pytest.mark.parametrize(
    ("name", "change"),
    [("again", {}), ("turned", {"chosen": "rejected", "rejected": "chosen"})],
)
def test_the_trained_pair_planted_among_those_that_are_read_is_refused(
    folder: Path, name: str, change: dict[str, str]
) -> None:
    """Under another name, and with the preference turned round, too."""
    rows = planted(folder, name, change)
    with pytest.raises(UserError, match=r"pair 13 of \w+ is pair 1 of user al again.*while it is"):
        tastes.build("vlm", known(folder, rows), **APART)


def test_users_who_were_trained_on_are_not_unseen(folder: Path) -> None:
    rows = known(folder).prompts
    with pytest.raises(UserError, match=r"user al was trained on \(1 of these users were\)"):
        check_apart(rows, rows[:3])
    check_apart(rows[:6], rows[6:])


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"pairs": 6}, "user al has 6 pairs; 6 that are read and one that is trained on are 7"),
        ({"layer": 3}, "model.taste.layer: 3, and emoji has 0, the embeddings, to 2"),
        ({"pretrained": "/nowhere"}, "model.taste.pretrained: there is no /nowhere"),
    ],
)
def test_what_cannot_be_read_is_refused(folder: Path, options: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        tastes.build("vlm", known(folder), **{**APART, **options})


def test_what_was_read_is_kept(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    options = {**APART, "cache": str(tmp_path / "kept")}
    told = read(folder / "four.jsonl")
    first = tastes.build("vlm", known(folder), **options).of(told)
    monkeypatch.setattr("ddpo.tastes.vlm._loaded", None)  # nothing is read again
    assert torch.equal(tastes.build("vlm", known(folder), **options).of(told), first)
    with pytest.raises(TypeError):
        tastes.build("vlm", known(folder), **{**options, "layer": 0}).of(told)


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DPO on the users' pairs; the layers for the taste are all that is trained."""
    at = tmp_path_factory.mktemp("ppd") / "run"
    argv = helpers.smoke(at, "--objective.name", "dpo", "--objective.offline", "true")
    where = argv.index("--lora.rank")
    argv[where : where + 2] = ["--lora", "null"]
    argv += ["--prompts.path", str(folder / "seen.jsonl"), "--trainer.lr", "3e-2"]
    argv += ["--advantage.name", "batch", "--evaluation.num_prompts", "2"]
    taste = "name: vlm, dim: 128, pretrained: emoji, reading: apart, pooling: mean, layer: 1"
    assert main(["train", *argv, "--model.taste", f"{{{taste}}}"]) == 0
    return at


def test_a_new_user_from_four_pairs(run: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "sample.png"
    argv = ["sample", str(run), "--prompt", "a fox", "--count", "1", "--out", str(out)]
    assert main([*argv, "--pairs", str(folder / "four.jsonl")]) == 0
    assert out.is_file()
    made = Run(run)
    taste = made.taste.of(read(folder / "four.jsonl"))
    base, nobody, personal = (
        made.sample(["a fox"], [0], column, taste=each)[0].tobytes()
        for column, each in (("base", taste), ("tuned", None), ("tuned", taste))
    )
    assert base == nobody != personal
    assert not (run / "lora" / "pytorch_lora_weights.safetensors").exists()


def test_another_number_of_pairs_is_refused(
    run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["sample", str(run), "--prompt", "a fox", "--pairs"]
    assert main([*argv, str(folder / "two.jsonl")]) == 2
    assert "2 pairs, and this model was trained to read 4" in capsys.readouterr().err
    assert main([*argv, str(folder / "seen.jsonl")]) == 2
    assert "holds 2 users; give the pairs of one" in capsys.readouterr().err


def test_the_configuration_of_users(tmp_path: Path) -> None:
    """It is none of those that are found by a name, since its data is made first."""
    file = Path(__file__).parents[2] / "configs" / "users" / "ppd_emoji.yaml"
    settings = config.load(file)
    checks.check(settings)
    rows = write(tmp_path / "seen.jsonl", ["u00", "u01"])
    settings.prompts.path = str(rows)
    assert source(settings, build.plain_prompts(settings)).shape == (1, 64)


def test_win_rates_in_closed_form() -> None:
    """Two users, two pictures: a tie counts half, and the interval is over users."""
    own = np.array([[1.0, 2.0], [0.0, np.nan]])
    other = Column("base", np.array([[0.0, 2.0], [1.0, 5.0]]))
    (row,) = win_rates(own, [other], ["al", "bo"]).values()
    assert row["win_rate"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert row["users"] == {"al": 0.75, "bo": 0.0}
    assert row["low"] < row["win_rate"] < row["high"]


def test_users_are_judged_by_their_own_reward(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unseen = write(tmp_path / "unseen.jsonl", ["u64", "u65", "u66"], start=300)
    argv = ["users", str(run), "--judge", "emoji_taste", "--pairs"]
    assert main([*argv, str(unseen), "--out", str(tmp_path / "out")]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(results) == {"base", "nobody", "base with another user's taste"}
    assert results["base"] == results["nobody"]  # without a LoRA nobody's is the base's
    assert set(results["base"]["users"]) == {"u64", "u65", "u66"}
    assert "personal beats base in" in capsys.readouterr().out
    assert Image.open(tmp_path / "out" / "users.png").width > 5 * 128
    first = (tmp_path / "out" / "users.png").read_bytes()
    for flags in (["--count", "1"], ["--seed", "9"]):
        assert main([*argv, str(unseen), "--out", str(tmp_path / "other"), *flags]) == 0
        assert (tmp_path / "other" / "users.png").read_bytes() != first
    capsys.readouterr()
    assert main([*argv, str(folder / "seen.jsonl"), "--out", str(tmp_path / "seen")]) == 2
    assert "user al was trained on (2 of these users were)" in capsys.readouterr().err
    assert not (tmp_path / "seen").exists()
    more = ["--seen", "--out", str(tmp_path / "seen")]
    assert main([*argv, str(folder / "seen.jsonl"), *more]) == 0


def test_another_run_is_compared_with(run: Path, tmp_path: Path) -> None:
    """Against itself personal pictures meet nobody's; another sampler is refused."""
    unseen = write(tmp_path / "unseen.jsonl", ["u64", "u65"], start=400)
    argv = ["users", str(run), "--judge", "emoji_taste", "--pairs", str(unseen)]
    out = tmp_path / "out"
    assert main([*argv, "--against", str(run), "--count", "2", "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results[str(run)] == results["nobody"]
    mine, its = (config.load(run / "config.yaml") for _ in range(2))
    its.sampler = its.sampler.model_copy(update={"num_steps": 2})
    with pytest.raises(UserError, match="other has another sampler than this run"):
        check_comparable(mine, its, "other")


def test_an_evaluation_draws_to_users_who_were_trained_on_alone(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their pictures are personal; those of new users would be nobody's, and are refused."""
    settings = config.load(run / "config.yaml")
    settings.evaluation.prompts = str(write(folder / "more.jsonl", ["al"], start=500))
    _, more = build.evaluation_sets(settings)
    assert all(prompt.taste is not None for prompt in more)
    unseen = write(tmp_path / "unseen.jsonl", ["u64", "u65"], start=600)
    argv = ["evaluate", str(run), "--out", str(tmp_path / "out"), "--evaluation.prompts"]
    assert main([*argv, str(unseen)]) == 2
    line = "unseen: user u64 was not trained on (2 of these users were not)"
    assert line in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
