"""The loop: roll out, score, compare, update. It knows nothing of files and flags.

An iteration is a function of the weights, the optimizer, the advantage's statistics and (seed,
iteration): nothing random is carried from one to the next.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.training_utils import EMAModel
from jaxtyping import Float, Int
from torch import Tensor

from ddpo.errors import Stopped
from ddpo.images import GUARDS
from ddpo.models import Policy
from ddpo.objectives import Batch, Objective
from ddpo.parallel import ranks
from ddpo.parallel.seeds import Purpose, generator
from ddpo.parallel.sizes import Sizes
from ddpo.prompts import Prompt, PromptSet
from ddpo.records import checkpoint
from ddpo.rewards import Values
from ddpo.rollout import pairs as offline
from ddpo.rollout.sample import Sampler, sample, stored_steps
from ddpo.rollout.trajectory import Trajectory, join
from ddpo.scoring import Scoring
from ddpo.training.credit import Credit, Mixture
from ddpo.training.gates import first_pass_deviation, gate_limit
from ddpo.training.measures import Measured, Metrics, kl_pairs, peak_gb
from ddpo.training.selection import Columns
from ddpo.training.terms import Terms
from ddpo.training.terms.denoising_errors import DenoisingErrors
from ddpo.training.terms.log_probs import LogProbs
from ddpo.training.update import Pass, clip_gradients

MAX_SKIPPED = 3
"""Iterations in a row without one good optimizer step after which a run stops."""


class _Begun(NamedTuple):
    """Where an iteration begins: optimizer steps of the whole run, the memory of the advantage."""

    steps: int
    statistics: dict[str, Any]


@dataclass
class Trainer:
    """Everything that one iteration needs.

    mixture       what samples are credited with, given their rewards
    columns       which steps, or draws of noise, are trained on
    pairs_folder  where recorded pairs lie, which then take the place of rollouts
    progress      called with a phase, how much of it is done, and of how much
    iteration     those that are done
    gated         the checks around the first update have passed in this process
    """

    policy: Policy
    sampler: Sampler
    prompts: PromptSet
    scorer: Scoring
    mixture: Mixture
    objective: Objective
    optimizer: torch.optim.Optimizer
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler
    ema: EMAModel | None
    sizes: Sizes
    max_grad_norm: float
    seed: int
    columns: Columns = field(default_factory=Columns)
    pairs_folder: Path | None = None
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None
    iteration: int = field(default=0, init=False)
    skipped_in_a_row: int = field(default=0, init=False)
    gated: bool = field(default=False, init=False)
    _begun: _Begun | None = field(default=None, init=False)

    def iterate(self) -> Metrics:
        """One iteration; its metrics.

        Raises Stopped, with the weights as before, when the run must end.
        """
        started = time.perf_counter()
        self._begun = _Begun(self.lr_scheduler.last_epoch, self.mixture.state())
        key = (Purpose.GLOBAL, self.seed, self.iteration, ranks.state().process_index)
        torch.manual_seed(generator(*key).initial_seed())
        prompts = self.draw()
        trajectory, values, guards, times = self.rollout(prompts)
        batch, outcome = self.outcome(prompts, trajectory, values)
        measured, terms = Measured(self.objective.ratio_bound), self.terms(trajectory, epoch=0)
        work = Pass(terms, batch, self.objective, self.sizes.micro_batch, measured, moved=False)
        self.gate(work)
        before_update = time.perf_counter()
        trained = batch.rows(batch.present.nonzero().flatten())
        updated = {**self.update(work), **self.objective.metrics(trained)}
        times["time/update"] = time.perf_counter() - before_update
        updated["kl_ref"] = self.kl_to_reference(trajectory)
        self.iteration += 1
        self._begun = None
        times["time/total"] = time.perf_counter() - started
        return {
            "iteration": self.iteration,
            "images_seen": self.images_seen,
            **outcome,
            **updated,
            **guards,
            **times,
            "images_per_s": len(prompts) / times["time/total"],
            "memory/peak_gb": peak_gb(self.policy.device),
        }

    def draw(self) -> list[Prompt]:
        """This iteration's prompts, `samples_per_prompt` times each.

        They are the next ones of an endless series of passes over the set, each pass in an order of
        its own. A prompt that comes twice, where one pass ends and the next begins or in a set
        smaller than an iteration, makes two groups.
        """
        first, size = self.iteration * self.sizes.prompts_per_iteration, len(self.prompts)
        positions = range(first, first + self.sizes.prompts_per_iteration)
        keys = {
            number: (Purpose.PROMPTS, self.seed, number)
            for number in {p // size for p in positions}
        }
        orders = {
            n: torch.randperm(size, generator=generator(*key)).tolist() for n, key in keys.items()
        }
        drawn = [self.prompts[orders[p // size][p % size]] for p in positions]
        return [prompt for prompt in drawn for _ in range(self.sizes.samples_per_prompt)]

    def rollout(self, prompts: list[Prompt]) -> tuple[Trajectory, Values, Metrics, Metrics]:
        """This rank's trajectories (whole groups), all ranks' rewards, guards' means, seconds."""
        state, started = ranks.state(), time.perf_counter()
        mine = self.sizes.samples(self.sizes.share(state.process_index, state.num_processes))
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
        everyone = {
            name: torch.tensor(ranks.gather(column.tolist())) for name, column in values.items()
        }
        totals = ranks.gather([guards])
        means = {f"guard/{name}": sum(row[name] for row in totals) for name in GUARDS}
        return join(parts), everyone, means, times

    def trajectories(self, prompts: list[Prompt], numbers: list[int]) -> Iterator[Trajectory]:
        """Sampled by the policy, or recorded ones.

        With them goes what the objective needs of the reference.
        """
        if self.pairs_folder is not None:
            return offline.recorded(
                self.policy, prompts, self.pairs_folder, self.sampler.batch_size
            )
        keys = [(Purpose.NOISE, self.seed, self.iteration, number) for number in numbers]
        wanted = {"logp_ref": "logp_ref", "kl": "output_ref"}
        reference = [wanted[need] for need in self.objective.needs if need in wanted]
        return sample(
            self.policy, self.sampler, prompts, keys, reference, self.columns.guidance_scale
        )

    def terms(self, trajectory: Trajectory, epoch: int) -> Terms:
        """What the objective is a function of.

        Each pass over the images has denoising errors of its own.
        """
        own = self.columns.guidance_scale
        scale = self.sampler.guidance_scale if own is None else own
        sampler = replace(self.sampler, guidance_scale=scale)
        if not self.objective.denoising_errors:
            return LogProbs(self.policy, sampler, trajectory)
        groups = [self.sizes.group(sample) for sample in trajectory.samples]
        keys = [(Purpose.DENOISING, self.seed, self.iteration, epoch, group) for group in groups]
        reference = "errors_ref" in self.objective.needs
        return DenoisingErrors(
            self.policy, sampler, trajectory, keys, self.columns.draws, reference
        )

    def outcome(
        self, prompts: list[Prompt], trajectory: Trajectory, values: Values
    ) -> tuple[Batch, Metrics]:
        """The batch of all ranks, and what the rewards were."""
        group = torch.tensor([self.sizes.group(sample) for sample in range(len(prompts))])
        credit, metrics = self.mixture.credit(values, [prompt.key for prompt in prompts], group)
        return self.batch(trajectory, credit, group), metrics

    def batch(self, trajectory: Trajectory, credit: Credit, group: Int[Tensor, " B"]) -> Batch:
        """What the samples of all ranks are credited with, and the matrices of the rollout."""
        device = self.policy.device
        columns, matrices = torch.ones(self.columns.draws, dtype=torch.bool, device=device), {}
        if not self.objective.denoising_errors:
            noise = generator(Purpose.TIMESTEPS, self.seed, self.iteration)
            columns = self.columns.subset(self.sampler.steps.stochastic, noise)
            recorded = {"logp_old": trajectory.logp_old, "logp_ref": trajectory.logp_ref}
            matrices = {
                name: _from_all_ranks(matrix, device)
                for name, matrix in recorded.items()
                if matrix is not None
            }
        return Batch(
            advantage=credit.advantage.to(device),
            reward=credit.reward.to(device),
            group=group.to(device),
            present=credit.present.to(device),
            stochastic=columns,
            matrices=matrices,
            all_reward=credit.reward[credit.valued].to(device),
            all_group=group[credit.valued].to(device),
        )

    def gate(self, work: Pass) -> None:
        """Before the first update, a step scored again must have the recorded log-probability."""
        if self.gated:
            return
        limit = gate_limit(self.objective.ratio_bound, self.policy.half_precision)
        worst = first_pass_deviation(work)
        if not worst <= limit:
            raise Stopped(
                f"ratio gate: before any update |ratio - 1| is {worst:.1e}, above {limit:.1e}: "
                "the policy that is scored is not the one that sampled; "
                "look for dropout, another precision or another guidance in the update"
            )

    def update(self, work: Pass) -> Metrics:
        """`epochs` passes of `minibatches` steps.

        A step whose loss or gradient is not finite is left out.
        """
        parameters = list(self.policy.parameters().values())
        present = work.batch.present.tolist()
        losses, norms, skipped, lr = [], [], 0, 0.0
        for epoch in range(self.sizes.epochs):
            work.terms = self.terms(work.terms.trajectory, epoch)
            order = generator(Purpose.MINIBATCHES, self.seed, self.iteration, epoch)
            for number, groups in enumerate(
                self.sizes.deal(order), 1 + epoch * self.sizes.minibatches
            ):
                scored = [sample for sample in self.sizes.samples(groups) if present[sample]]
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
                self.progress("update", number, self.sizes.updates)
        self._stop_if_broken(skipped, bool(losses))
        return {
            "loss": sum(losses) / max(len(losses), 1),
            **work.measured.result(),
            "grad_norm": sum(norms) / max(len(norms), 1),
            "lr": lr,
            "skipped_steps": skipped,
        }

    def _stop_if_broken(self, skipped: int, any_good: bool) -> None:
        """After the first update ranks must hold equal weights.

        Where no step has been good for long, the run stops.
        """
        self.skipped_in_a_row = 0 if any_good else self.skipped_in_a_row + 1
        if self.skipped_in_a_row >= MAX_SKIPPED:
            raise Stopped(
                f"no finite loss or gradient in {MAX_SKIPPED} iterations; "
                "lower trainer.lr or look at the reward"
            )
        if not self.gated:
            weights = self.policy.parameters()
            different = [
                name for name, weight in weights.items() if not ranks.agree(weight.detach())
            ]
            if different:
                raise Stopped(
                    f"rank gate: after the first update {len(different)} of {len(weights)} "
                    f"trained weights differ between ranks, the first is {different[0]}: "
                    "look for another version of torch or of the code, or for a broken device, "
                    "on one of them"
                )
            self.gated = True

    @torch.no_grad()
    def kl_to_reference(self, trajectory: Trajectory) -> float:
        """Mean KL of a step to the reference per latent dimension, over a few samples and steps."""
        columns = self.sampler.steps.stochastic.nonzero().flatten().tolist()
        # nothing was sampled, or without a density
        if not columns or trajectory.latents.shape[1] == 1:
            return math.nan
        spread = kl_pairs(self.sizes.images, columns)
        mine = {sample: row for row, sample in enumerate(trajectory.samples)}
        pairs = [(mine[sample], column) for sample, column in spread if sample in mine]
        kls: list[float] = []
        if pairs:
            chosen = torch.tensor(pairs, device=self.policy.device)
            arguments = (self.policy, self.sampler, trajectory, *chosen.unbind(1))
            step = stored_steps(*arguments)
            with self.policy.weights("base"):
                kls = step.kl(stored_steps(*arguments)).tolist()
        everyone = ranks.gather(kls)
        return sum(everyone) / len(everyone)

    @property
    def images_seen(self) -> int:
        """Images that the rewards have scored, or recorded ones, since the start of the run."""
        return self.iteration * self.sizes.images

    def rewind(self) -> bool:
        """Take back what an iteration that broke off has changed, so that it can begin again.

        False where an optimizer step has moved the weights, which stays.
        """
        if self._begun is None:
            return True
        self.mixture.restore(self._begun.statistics)
        return self.lr_scheduler.last_epoch == self._begun.steps

    def state(self) -> dict[str, Any]:
        """Everything that the next iteration depends on.

        All of it is JSON but `tensors`, by kind and name.
        """
        parameters = self.policy.parameters()
        moments = checkpoint.optimizer_tensors(self.optimizer, parameters)
        tensors = {"parameters": dict(parameters), "optimizer": moments}
        state: dict[str, Any] = {
            "iteration": self.iteration,
            "images_seen": self.images_seen,
            "skipped_in_a_row": self.skipped_in_a_row,
            "advantage": self.mixture.state(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
        }
        if self.ema is not None:
            tensors["ema"] = dict(zip(parameters, self.ema.shadow_params, strict=True))
            state["ema_steps"] = self.ema.optimization_step
        return {**state, "tensors": tensors}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up a state. Raises UserError where it is of another model."""
        tensors, parameters = state["tensors"], self.policy.parameters()
        checkpoint.restore_parameters(parameters, tensors["parameters"])
        checkpoint.restore_optimizer(self.optimizer, parameters, tensors["optimizer"])
        self.mixture.restore(state["advantage"])
        self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        for group, lr in zip(
            self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True
        ):
            group["lr"] = lr
        self.iteration, self.skipped_in_a_row = state["iteration"], state["skipped_in_a_row"]
        if self.ema is not None:
            for name, average in zip(parameters, self.ema.shadow_params, strict=True):
                # in place: it is the policy's snapshot "average", too
                average.copy_(tensors["ema"][name])
            self.ema.optimization_step = state["ema_steps"]


def _from_all_ranks(matrix: Float[Tensor, "b T"], device: torch.device) -> Float[Tensor, "B T"]:
    """Each rank's rows, in the order of the samples: ranks hold contiguous blocks."""
    return torch.tensor(ranks.gather(matrix.tolist()), dtype=matrix.dtype, device=device)
