"""The benchmark of mixtures, on a model whose means are a formula."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import specialists


def conditioned(mixture: frozenset[tuple[str, float]]) -> dict[str, float]:
    """`red` rises with its weight, `small` by its square."""
    shares = dict(mixture)
    return {"red": 1 + shares.get("red", 0.0), "small": shares.get("small", 0.0) ** 2 - 3}


def test_a_share_is_of_the_gain_over_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(specialists, "Run", str)
    alone = {"red": 1.25, "small": -9.0}
    bench: Any = SimpleNamespace(conditioned=conditioned, means=lambda run: alone)
    base = {"red": 0.75, "small": -3.5}
    found = specialists.corner(bench, base, "red", "runs/red")
    assert found["share"] == pytest.approx((2 - 0.75) / (1.25 - 0.75))
    assert found["conditioned"] == {"red": 2, "small": -3} and found["specialist"] == alone
    assert "share" not in specialists.corner(bench, base, "red", None)


def test_a_front_goes_from_the_second_reward_to_the_first() -> None:
    bench: Any = SimpleNamespace(conditioned=conditioned)
    found = specialists.front(bench, "red", "small")
    assert found["means"][0] == {"red": 1, "small": -2}
    assert found["means"][-1] == {"red": 2, "small": -3}
    assert found["spearman"] == pytest.approx({"red": 1, "small": 1})


def test_the_rank_correlation() -> None:
    """1 - 6 sum d^2 / (n (n^2 - 1)), of which d are the differences of ranks."""
    assert specialists.spearman([1, 2, 3, 4], [10, 40, 20, 30]) == pytest.approx(0.4)
    assert specialists.spearman([30, 10, 20], [1, 3, 2]) == pytest.approx(-1)


def test_the_scales_are_those_of_the_conditioned_model_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its mixtures are drawn once, at the scales; the base and specialists at 1."""
    drawn: list[tuple[Any, ...]] = []

    class Drawing:
        config, policy = SimpleNamespace(rewards=[1]), None
        taste = SimpleNamespace(of=lambda mixture: tuple(mixture))

        def sample(self, texts: list[str], seeds: list[int], column: str, **more: Any) -> list[str]:
            drawn.append((texts, seeds, column, more))
            return texts

    class Red:
        name = "red"

        def __call__(self, images: list[str], *_: Any) -> torch.Tensor:
            return torch.tensor([1.0, torch.nan, 2.0, 3.0])

    prompts = [SimpleNamespace(text=text, metadata={}) for text in ("a", "b")]
    build = SimpleNamespace(
        plain_prompts=lambda _: SimpleNamespace(prompts=prompts), all_rewards=lambda *_: [Red()]
    )
    monkeypatch.setattr(specialists, "build", build)
    monkeypatch.setattr(specialists, "from_pil", list)
    run: Any = Drawing()
    bench = specialists.Bench(run, "000090", 2, lora_scale=0.5, taste_scale=3.0)
    for _ in range(2):
        assert specialists.at(bench, {"red": 1.0, "small": 0.0}) == {"red": 2}
    bench.means(run, "base")
    texts, seeds = ["a", "a", "b", "b"], [0, 1, 2, 3]
    scaled = {"taste": ("red",), "lora_scale": 0.5, "taste_scale": 3.0}
    assert drawn == [(texts, seeds, "000090", scaled), (texts, seeds, "base", {})]
