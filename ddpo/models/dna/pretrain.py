"""Trains the DNA world's models from scratch: `python -m ddpo.models.dna.pretrain --stage STAGE`.

    grammar   measures the held-out data: what everything else is compared with
    oracles   the two activity oracles and the classifier of accessibility
    base      the masked diffusion model
    all       the three, in this order

Each stage writes its weights, and its figures into figures.json, below --weights. Seeds are fixed
and lengths are counted in steps. `--seconds` ends the base's training in time on a machine of
unknown speed: the rate is constant until the decay begins, and until then the number of steps is
planned again from the pace. figures.json says how many there were; with `--steps` of that number
no clock is needed. Threads come from OMP_NUM_THREADS (one by default).
"""

import argparse
import json
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from . import activity, base, grammar, oracles, statistics

WEIGHTS = Path(__file__).parent / "weights"
SEEDS = {"base": 1, "oracle_train": 2, "oracle_judge": 3, "accessibility": 4, "held_out": 5}
"""Of the sequences: each model has its own, and none has the held-out ones."""
HELD_OUT = 10_000
ORACLE_SEQUENCES, ORACLE_BATCH, ORACLE_RATE = 24_000, 128, 2e-3
EPOCHS = {"oracle_train": 10, "oracle_judge": 10, "accessibility": 4}
BASE_SEQUENCES, BASE_STEPS, BASE_BATCH, BASE_RATE = 131_072, 2_605, 512, 2e-3
WARMUP, DECAY, AVERAGE = 300, 0.4, 0.999
"""Steps of linear warm-up; share of the steps in which the rate falls to 0; the moving average."""
PACE = 100
"""Steps between two looks at the clock."""
SAMPLES = 512


def record(folder: Path, stage: str, figures: dict[str, Any]) -> None:
    """Add a stage's figures to figures.json."""
    file = folder / "figures.json"
    known = json.loads(file.read_text()) if file.is_file() else {}
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(known | {stage: figures}, indent=1) + "\n")
    print(stage, json.dumps(figures))


def top_decile(tokens: Tensor) -> Tensor:
    """The most active tenth of the sequences, by the formula."""
    active = activity.activity(tokens)
    return tokens[active >= active.quantile(0.9)]


def measure_grammar(folder: Path) -> None:
    """Figures of the held-out data: quantiles of activity, sites, 3-mers, accessible ones."""
    tokens = grammar.draw(HELD_OUT, SEEDS["held_out"])
    active, best = activity.activity(tokens), top_decile(tokens)
    levels = (0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
    record(
        folder,
        "grammar",
        {
            "sequences": len(tokens),
            "activity_quantiles": {str(q): round(float(active.quantile(q)), 3) for q in levels},
            "accessible": round(float(activity.accessibility(tokens).mean()), 4),
            "sites": rounded(statistics.site_frequencies(tokens)),
            "sites_top_decile": rounded(statistics.site_frequencies(best)),
            "kmer_correlation_top_decile": round(statistics.kmer_correlation(tokens, best), 4),
            "longest_run": round(float(statistics.longest_run(tokens).double().mean()), 3),
            "gc_content": round(float(statistics.gc_content(tokens).mean()), 4),
        },
    )


def rounded(figures: dict[str, float], digits: int = 4) -> dict[str, float]:
    return {name: round(value, digits) for name, value in figures.items()}


def train_oracle(name: str, device: str) -> oracles.Oracle:
    """Train on this oracle's own sequences; half of a batch is read from the other strand."""
    generator = torch.Generator().manual_seed(SEEDS[name])
    tokens = grammar.draw(ORACLE_SEQUENCES, SEEDS[name])
    classify = name == "accessibility"
    labels = activity.accessible if classify else activity.measured
    target = labels(tokens, generator).float().to(device)
    letters = oracles.one_hot(tokens).to(device)
    torch.manual_seed(SEEDS[name])
    oracle = oracles.Oracle(oracles.CHANNELS[name]).to(device)
    optimizer = torch.optim.AdamW(oracle.parameters(), ORACLE_RATE)
    steps = EPOCHS[name] * (len(tokens) // ORACLE_BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, ORACLE_RATE, total_steps=steps)
    loss_of = F.binary_cross_entropy_with_logits if classify else F.mse_loss
    order = torch.arange(len(tokens))
    for step in range(steps):
        place = step % (len(tokens) // ORACLE_BATCH)
        if place == 0:
            order = torch.randperm(len(tokens), generator=generator)
        rows = order[place * ORACLE_BATCH :][:ORACLE_BATCH].to(device)
        read = letters[rows]
        # the order of A, C, G, T makes this the reverse complement
        read[::2] = read[::2].flip(1, 2)
        loss = loss_of(oracle(read), target[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return oracle.cpu().eval()


def r_squared(predicted: Tensor, target: Tensor) -> float:
    """The share of the target's variance that the prediction explains."""
    return float(1 - (predicted - target).square().mean() / target.var(correction=0))


def area_under_curve(scores: Tensor, positive: Tensor) -> float:
    """Of the ROC curve: the probability that a positive scores above a negative."""
    ranks = scores.argsort().argsort().double()
    positives = int(positive.sum())
    below = ranks[positive].sum() - positives * (positives - 1) / 2
    return float(below / (positives * (len(scores) - positives)))


def train_oracles(folder: Path, device: str) -> None:
    """All three networks, each saved and measured on the held-out data with its noisy labels."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens, figures = grammar.draw(HELD_OUT, SEEDS["held_out"]), {}
    generator = torch.Generator().manual_seed(SEEDS["held_out"])
    noisy = activity.measured(tokens, generator)
    open_ = activity.accessible(tokens, generator)
    for name in oracles.CHANNELS:
        started = time.perf_counter()
        oracle = train_oracle(name, device)
        save_file(oracle.state_dict(), folder / f"{name}.safetensors")
        scores = oracles.score(oracle, tokens)
        wall = round(time.perf_counter() - started, 1)
        if name == "accessibility":
            formula = activity.accessibility(tokens)
            metrics = {"auc": area_under_curve(scores, open_)}
            metrics |= {"auc_of_the_formula": area_under_curve(formula, open_)}
        else:
            metrics = {"r2": r_squared(scores, noisy)}
            metrics |= {"r2_without_noise": r_squared(scores, activity.activity(tokens))}
        figures[name] = {"device": device, "wall_s": wall} | rounded(metrics)
    record(folder, "oracles", figures)


def rate(step: int, steps: int) -> float:
    """Linear warm-up, constant, linear to zero over the last `DECAY` of the steps: a factor."""
    return min(1.0, (step + 1) / WARMUP, (steps - step) / (DECAY * steps))


class BaseTraining:
    """The masked diffusion model in training, with the moving average of its weights."""

    def __init__(self, device: str, batch: int) -> None:
        self.device, self.batch = device, batch
        self.tokens = grammar.draw(BASE_SEQUENCES, SEEDS["base"]).to(device, torch.uint8)
        torch.manual_seed(SEEDS["base"])
        model: Any = base.untrained()
        self.model = model.to(device).train()
        self.parameters = list(self.model.parameters())
        self.average = [p.detach().clone() for p in self.parameters]
        fused = device.startswith("cuda")
        self.optimizer = torch.optim.AdamW(
            self.parameters, BASE_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=fused
        )
        self.generator = torch.Generator(device).manual_seed(SEEDS["base"])

    def step(self, step: int, steps: int) -> Tensor:
        """One step of `steps`; the loss, nats per sequence, still on the device."""
        generator, length = self.generator, grammar.LENGTH
        shape = (self.batch,)
        rows = torch.randint(len(self.tokens), shape, generator=generator, device=self.device)
        counts = base.stratified_counts(self.batch, length, generator)
        masks = base.random_masks(counts, length, generator)
        predict = partial(base.log_probs, self.model)
        loss = base.bound(predict, self.tokens[rows].long(), masks).mean()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, length)  # 1 per letter
        self.optimizer.param_groups[0]["lr"] = BASE_RATE * rate(step, steps)
        self.optimizer.step()
        with torch.no_grad():
            decay = min(AVERAGE, (step + 1) / (step + 10))
            torch._foreach_lerp_(self.average, self.parameters, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        return loss.detach()

    @torch.no_grad()
    def save(self, folder: Path) -> None:
        """Write the averaged weights and the tokenizer in transformers' format."""
        present = [p.clone() for p in self.parameters]
        torch._foreach_copy_(self.parameters, self.average)  # pyright: ignore[reportPrivateImportUsage]
        self.model.save_pretrained(folder)
        torch._foreach_copy_(self.parameters, present)  # pyright: ignore[reportPrivateImportUsage]
        base.tokenizer().save_pretrained(folder)


def train_base(folder: Path, device: str, limit: int, batch: int, seconds: float) -> None:
    """Train the masked diffusion model for `limit` steps or fewer, and measure what it draws."""
    torch.set_float32_matmul_precision("high")
    folder.mkdir(parents=True, exist_ok=True)
    training = BaseTraining(device, batch)
    started = looked = saved = time.perf_counter()
    step, steps, total = 0, limit, torch.zeros((), device=device)
    while step < steps:
        total += training.step(step, steps)
        step += 1
        if step % PACE:
            continue
        mean, now = total.item() / PACE / grammar.LENGTH, time.perf_counter()
        pace, looked, wall = (now - looked) / PACE, now, now - started
        total.zero_()
        if seconds and step < (1 - DECAY) * steps:
            steps = min(limit, max(step + 1, step + int((seconds - wall) / pace)))
        line = {"step": step, "steps": steps, "loss_per_letter": mean, "step_ms": 1e3 * pace}
        line = json.dumps(rounded(line, 5) | {"wall_s": round(wall, 1)})
        with open(folder / "base_log.jsonl", "a") as log:
            log.write(line + "\n")
        if step % (10 * PACE) == 0:
            print(line, flush=True)
        if not mean < float("inf"):
            raise RuntimeError(f"the loss is {mean} at step {step}: lower BASE_RATE ({BASE_RATE})")
        if now - saved > 60:
            training.save(folder / "base")
            saved = now
        if seconds and wall > 1.1 * seconds:
            break
    training.save(folder / "base")
    wall = round(time.perf_counter() - started, 1)
    figures = {"steps": step, "planned": steps, "batch": batch, "device": device, "wall_s": wall}
    model: Any = base.load(folder / "base")
    record(folder, "base", figures | measure_base(model.to(device)))


def measure_base(model: Any, numbers: tuple[int, ...] = (16, 32, 64, 128)) -> dict[str, Any]:
    """The bound on held-out data, and for each number of steps what `SAMPLES` samples look like."""
    device = model.device
    tokens = grammar.draw(HELD_OUT, SEEDS["held_out"])
    generator = torch.Generator(device).manual_seed(SEEDS["held_out"])
    best, known = top_decile(tokens), statistics.site_frequencies(tokens)
    likelihood = base.log_likelihood(model, tokens[:SAMPLES].to(device), generator).mean()
    figures: dict[str, Any] = {"log_likelihood_held_out": round(float(likelihood), 2)}
    for steps in numbers:
        drawn = base.sample(model, SAMPLES, steps, generator).cpu()
        frequencies = statistics.site_frequencies(drawn)
        figures[f"steps_{steps}"] = {
            "kmer_correlation": round(statistics.kmer_correlation(drawn, tokens), 4),
            "kmer_correlation_top_decile": round(statistics.kmer_correlation(drawn, best), 4),
            "sites_over_data": rounded(
                {name: frequencies[name] / known[name] for name in known}, 3
            ),
            "activity_median": round(float(activity.activity(drawn).median()), 3),
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stage", choices=["grammar", "oracles", "base", "all"], required=True)
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder to write to")
    parser.add_argument("--device", default="cpu", help="to train on: cpu or cuda")
    parser.add_argument("--steps", type=int, default=BASE_STEPS, help="of the base, at most")
    parser.add_argument("--batch", type=int, default=BASE_BATCH, help="of the base: sequences")
    parser.add_argument("--seconds", type=float, default=0, help="of the base; 0: no limit")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if arguments.stage in ("grammar", "all"):
        measure_grammar(arguments.weights)
    if arguments.stage in ("oracles", "all"):
        train_oracles(arguments.weights, arguments.device)
    if arguments.stage in ("base", "all"):
        limits = arguments.steps, arguments.batch, arguments.seconds
        train_base(arguments.weights, arguments.device, *limits)


if __name__ == "__main__":
    main()
