"""The loop: roll out, score, compare, update. It knows nothing of files and flags.

An iteration is a function of the weights, the optimiser, the advantage's statistics and (seed, iteration):
nothing random is carried from one to the next.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from jaxtyping import Float, Int
from torch import Tensor

from ddpo.advantages import Advantage
from ddpo.errors import Stopped
from ddpo.images import GUARDS
from ddpo.models import Policy
from ddpo.objectives import Batch, Objective
from ddpo.parallel import ranks
from ddpo.parallel.seeds import Purpose, generator
from ddpo.prompts import Prompt, PromptSet
from ddpo.rewards import Values
from ddpo.rollout import pairs as offline
from ddpo.rollout.sample import Sampler, sample, stored_steps
from ddpo.rollout.trajectory import Trajectory, join
from ddpo.scoring.scorer import Scorer
from ddpo.training.batching import minibatches
from ddpo.training.credit import PerReward, lowered
from ddpo.training.gates import first_pass_deviation, gate_limit
from ddpo.training.measures import Measured, Metrics, kl_pairs, peak_gb
from ddpo.training.selection import Subset, extremes
from ddpo.training.terms import Terms
from ddpo.training.terms.denoising_errors import DenoisingErrors
from ddpo.training.terms.log_probs import LogProbs
from ddpo.training.update import Pass, clip_gradients

MAX_SKIPPED = 3
"""Iterations in a row without one good optimiser step after which a run stops."""


@dataclass
class Trainer:
    """Everything that one iteration needs. Sizes are global: they do not depend on the number of ranks.

    subset          the denoising steps that are trained on
    guidance_scale  of the update, where it is not the sampler's
    draws           columns of denoising errors, for objectives on these
    keep_extremes   only so many best and worst samples of a group are trained on
    max_missing     share of an iteration's images without a value of some reward above which it stops
    pairs_folder    where recorded pairs lie, which then take the place of rollouts
    """

    policy: Policy
    sampler: Sampler
    prompts: PromptSet
    scorer: Scorer
    objective: Objective
    advantage: Advantage | PerReward
    optimizer: torch.optim.Optimizer
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler
    ema: EMAModel | None
    prompts_per_iteration: int
    samples_per_prompt: int
    minibatches: int
    epochs: int
    micro_batch: int
    max_grad_norm: float
    advantage_clip: float
    seed: int
    subset: Subset = field(default_factory=Subset)
    guidance_scale: float | None = None
    draws: int = 1
    keep_extremes: int | None = None
    max_missing: float = 0.5
    pairs_folder: Path | None = None
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None
    iteration: int = 0
    images_seen: int = 0
    skipped_in_a_row: int = 0
    gated: bool = False

    def iterate(self) -> Metrics:
        """One iteration; its metrics. Raises Stopped, with the weights as before, when the run must end."""
        started = time.perf_counter()
        key = (Purpose.GLOBAL, self.seed, self.iteration, ranks.state().process_index)
        torch.manual_seed(generator(*key).initial_seed())
        prompts = self.draw()
        trajectory, values, guards, times = self.rollout(prompts)
        batch, outcome = self.outcome(prompts, trajectory, values)
        measured = Measured(self.objective.options.get("clip_range"))
        work = Pass(
            self.terms(trajectory, epoch=0), batch, self.objective, self.micro_batch, measured, moved=False
        )
        self.gate(work)
        before_update = time.perf_counter()
        updated = {**self.update(work), **self.objective.metrics(batch.rows(self.present(batch)))}
        times["time/update"] = time.perf_counter() - before_update
        updated["kl_ref"] = self.kl_to_reference(trajectory)
        self.iteration += 1
        self.images_seen += len(prompts)
        times["time/total"] = time.perf_counter() - started
        return {
            "iteration": self.iteration, "images_seen": self.images_seen,
            **outcome, **updated, **guards, **times,
            "images_per_s": len(prompts) / times["time/total"], "memory/peak_gb": peak_gb(self.policy.device),
        }  # fmt: skip

    def draw(self) -> list[Prompt]:
        """This iteration's prompts, `samples_per_prompt` times each.

        They are the next ones of an endless series of passes over the set, each pass in an order of its own.
        A prompt that comes twice, where one pass ends and the next begins or in a set smaller than an
        iteration, makes two groups.
        """
        first, size = self.iteration * self.prompts_per_iteration, len(self.prompts)
        positions = range(first, first + self.prompts_per_iteration)
        keys = {number: (Purpose.PROMPTS, self.seed, number) for number in {p // size for p in positions}}
        orders = {n: torch.randperm(size, generator=generator(*key)).tolist() for n, key in keys.items()}
        drawn = [self.prompts[orders[p // size][p % size]] for p in positions]
        return [prompt for prompt in drawn for _ in range(self.samples_per_prompt)]

    def rollout(self, prompts: list[Prompt]) -> tuple[Trajectory, Values, Metrics, Metrics]:
        """This rank's trajectories (whole groups), every rank's rewards, the guards' means, seconds."""
        state, started = ranks.state(), time.perf_counter()
        groups = ranks.share(self.prompts_per_iteration, state.process_index, state.num_processes)
        mine = [g * self.samples_per_prompt + i for g in groups for i in range(self.samples_per_prompt)]
        parts, guards = [], dict.fromkeys(GUARDS, 0.0)
        with ranks.together(), torch.no_grad():
            for part in self.trajectories([prompts[i] for i in mine], mine):
                metadata = [prompt.metadata for prompt in part.prompts]
                self.scorer.submit(part.images, [prompt.text for prompt in part.prompts], metadata)
                for name, guard in GUARDS.items():
                    guards[name] += guard(part.images).double().sum().item() / len(prompts)
                part.samples = [mine[i] for i in part.samples]
                parts.append(part)
                self.progress("sampling", part.samples[-1] - mine[0] + 1, len(mine))
            sampled = time.perf_counter()
            values = self.scorer.collect()
        times = {"time/sample": sampled - started, "time/reward": time.perf_counter() - sampled}
        everyone = {name: torch.tensor(ranks.gather(column.tolist())) for name, column in values.items()}
        totals = ranks.gather([guards])
        means = {f"guard/{name}": sum(row[name] for row in totals) for name in GUARDS}
        return join(parts), everyone, means, times

    def trajectories(self, prompts: list[Prompt], numbers: list[int]) -> Iterator[Trajectory]:
        """Sampled by the policy, or recorded ones; with what the objective needs of the reference."""
        if self.pairs_folder is not None:
            return offline.recorded(self.policy, prompts, self.pairs_folder, self.sampler.batch_size)
        keys = [(Purpose.NOISE, self.seed, self.iteration, number) for number in numbers]
        wanted = {"logp_ref": "logp_ref", "kl": "output_ref"}
        reference = [wanted[need] for need in self.objective.needs if need in wanted]
        return sample(self.policy, self.sampler, prompts, keys, reference, self.guidance_scale)

    def terms(self, trajectory: Trajectory, epoch: int) -> Terms:
        """What the objective is a function of; each pass over the images has denoising errors of its own."""
        scale = self.sampler.guidance_scale if self.guidance_scale is None else self.guidance_scale
        sampler = replace(self.sampler, guidance_scale=scale)
        if not self.objective.denoising_errors:
            return LogProbs(self.policy, sampler, trajectory)
        groups = [sample // self.samples_per_prompt for sample in trajectory.samples]
        keys = [(Purpose.DENOISING, self.seed, self.iteration, epoch, group) for group in groups]
        reference = "errors_ref" in self.objective.needs
        return DenoisingErrors(self.policy, sampler, trajectory, keys, self.draws, reference)

    def present(self, batch: Batch) -> Int[Tensor, " N"]:
        """Rows of the samples that take part in the update."""
        return (~batch.advantage.isnan()).nonzero().flatten()

    def outcome(self, prompts: list[Prompt], trajectory: Trajectory, values: Values) -> tuple[Batch, Metrics]:
        """The global batch (samples without a reward have a NaN advantage) and what the rewards were."""
        values = {name: torch.where(v.isfinite(), v, torch.nan) for name, v in values.items()}
        summed, gates = self.scorer.weighted(values).double(), self.scorer.gated(values)
        present, group = ~summed.isnan(), torch.arange(len(summed)) // self.samples_per_prompt
        missing, lost = {name: int(v.isnan().sum()) for name, v in values.items()}, int((~present).sum())
        if lost > self.max_missing * len(summed):
            each = ", ".join(f"from {name} for {count}" for name, count in missing.items() if count)
            share = f"{lost} of {len(summed)} images got no value, above trainer.max_missing"
            raise Stopped(f"rewards: {share} {self.max_missing:g} (NaN {each})")
        gated = torch.stack([torch.zeros_like(present), *gates.values()]).any(0) & present
        texts = [prompt.text for prompt in prompts]
        if isinstance(self.advantage, PerReward):
            known = {name: torch.where(present, v.double(), torch.nan) for name, v in values.items()}
            reward = advantage = self.advantage(known, texts, group, gated)
        else:
            reward = lowered(summed, group, gated)
            advantage = self.advantage(reward, texts, group)
        advantage = advantage.clamp(-self.advantage_clip, self.advantage_clip)
        advantage = torch.where(gated, advantage.clamp(max=0), advantage)
        if self.keep_extremes is not None:
            advantage[~extremes(reward, group, self.keep_extremes)] = torch.nan
        device, found = self.policy.device, summed[present]
        batch = self.batch(trajectory, advantage.to(device), reward.to(device), group.to(device))
        metrics = {"reward/mean": found.mean().item(), "reward/std": found.std(correction=0).item()}
        metrics |= {f"reward/{name}": column.nanmean().item() for name, column in values.items()}
        metrics |= {f"missing/{name}": count for name, count in missing.items()}
        metrics |= {f"gated/{name}": rows.double().mean().item() for name, rows in gates.items()}
        return batch, {**metrics, "reward/missing": lost, "reward/gated": gated.double().mean().item()}

    def batch(self, trajectory: Trajectory, advantage: Tensor, reward: Tensor, group: Tensor) -> Batch:
        """The matrices of all ranks; beside denoising errors, a column of zeros for each draw."""
        device, present = self.policy.device, ~reward.isnan()
        outcomes = {
            "advantage": advantage, "reward": reward, "group": group,
            "all_reward": reward[present], "all_group": group[present],
        }  # fmt: skip
        if self.objective.denoising_errors:
            nothing = torch.zeros(len(reward), self.draws, dtype=torch.float64, device=device)
            every = torch.ones(self.draws, dtype=torch.bool, device=device)
            return Batch(logp_old=nothing, stochastic=every, **outcomes)
        noise = generator(Purpose.TIMESTEPS, self.seed, self.iteration)
        return Batch(
            logp_old=_from_all_ranks(trajectory.logp_old, device),
            logp_ref=None if trajectory.logp_ref is None else _from_all_ranks(trajectory.logp_ref, device),
            stochastic=self.subset(self.sampler.steps.stochastic, noise), **outcomes,
        )  # fmt: skip

    def gate(self, work: Pass) -> None:
        """Before the first update: a step scored again must have the log-probability that was recorded."""
        if self.gated:
            return
        limit = gate_limit(self.objective.options.get("clip_range"), self.policy.half_precision)
        worst = first_pass_deviation(work)
        if not worst <= limit:
            raise Stopped(
                f"ratio gate: before any update |ratio - 1| is {worst:.1e}, above {limit:.1e}: "
                "the policy that is scored is not the one that sampled; "
                "look for dropout, another precision or another guidance in the update"
            )

    def update(self, work: Pass) -> Metrics:
        """`epochs` passes of `minibatches` steps; one whose loss or gradient is not finite is left out."""
        parameters = list(self.policy.parameters().values())
        present = set(self.present(work.batch).tolist())
        losses, norms, skipped, lr = [], [], 0, 0.0
        for epoch in range(self.epochs):
            work.terms = self.terms(work.terms.trajectory, epoch)
            order = generator(Purpose.MINIBATCHES, self.seed, self.iteration, epoch)
            for number, groups in enumerate(minibatches(self.prompts_per_iteration, self.minibatches, order)):
                size = self.samples_per_prompt
                scored = [i for g in groups for i in range(g * size, (g + 1) * size) if i in present]
                if not scored:  # nothing to learn from; AdamW would still move the weights
                    skipped += 1
                    continue
                loss = sum(ranks.gather([work.backward(scored)]))
                norm = clip_gradients(parameters, self.max_grad_norm, work.loss_scale)
                if torch.isfinite(torch.tensor([loss, norm])).all():
                    lr = self.optimizer.param_groups[0]["lr"]
                    self.optimizer.step()
                    work.moved = True
                    self.lr_scheduler.step()
                    losses.append(loss)
                    norms.append(norm)
                    if self.ema is not None:
                        self.ema.step(parameters)
                else:
                    skipped += 1
                self.optimizer.zero_grad()
                self.progress("update", epoch * self.minibatches + number + 1, self.epochs * self.minibatches)
        self._stop_if_broken(skipped, bool(losses))
        return {
            "loss": sum(losses) / max(len(losses), 1), **work.measured.result(),
            "grad_norm": sum(norms) / max(len(norms), 1), "lr": lr,
            "skipped_steps": skipped,
        }  # fmt: skip

    def _stop_if_broken(self, skipped: int, any_good: bool) -> None:
        """After the first update ranks must hold equal weights; without a good step for long, stop."""
        self.skipped_in_a_row = 0 if any_good else self.skipped_in_a_row + 1
        if self.skipped_in_a_row >= MAX_SKIPPED:
            raise Stopped(
                f"no finite loss or gradient in {MAX_SKIPPED} iterations; "
                "lower trainer.lr or look at the reward"
            )
        if not self.gated:
            weights = self.policy.parameters()
            different = [name for name, weight in weights.items() if not ranks.agree(weight.detach())]
            if different:
                raise Stopped(
                    f"rank gate: after the first update {len(different)} of {len(weights)} trained weights "
                    f"differ between ranks, the first is {different[0]}: "
                    "look for another version of torch or of the code, or for a broken device, on one of them"
                )
            self.gated = True

    @torch.no_grad()
    def kl_to_reference(self, trajectory: Trajectory) -> float:
        """Mean KL of a step to the reference per latent dimension, over a few pairs of samples and steps."""
        columns = self.sampler.steps.stochastic.nonzero().flatten().tolist()
        if not columns or trajectory.latents.shape[1] == 1:  # nothing was sampled, or without a density
            return math.nan
        spread = kl_pairs(self.prompts_per_iteration * self.samples_per_prompt, columns)
        mine = {sample: row for row, sample in enumerate(trajectory.samples)}
        pairs = [(mine[sample], column) for sample, column in spread if sample in mine]
        found: list[float] = []
        if pairs:
            chosen = torch.tensor(pairs, device=self.policy.device)
            arguments = (self.policy, self.sampler, trajectory, *chosen.unbind(1))
            step = stored_steps(*arguments)
            with self.policy.weights("base"):
                found = step.kl(stored_steps(*arguments)).tolist()
        everyone = ranks.gather(found)
        return sum(everyone) / len(everyone)


def _from_all_ranks(matrix: Float[Tensor, "b T"], device: torch.device) -> Float[Tensor, "B T"]:
    """Each rank's rows, in the order of the samples: ranks hold contiguous blocks."""
    return torch.tensor(ranks.gather(matrix.tolist()), dtype=matrix.dtype, device=device)
