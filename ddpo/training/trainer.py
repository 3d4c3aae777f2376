"""The loop: roll out, score, compare, update. It knows nothing of files and flags.

An iteration is a function of the weights, the optimizer, the advantage's statistics and (seed,
iteration): nothing random is carried from one to the next.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.training_utils import EMAModel
from jaxtyping import Bool
from torch import Tensor

from ddpo.errors import Stopped
from ddpo.media import joined
from ddpo.models import Policy
from ddpo.objectives import Batch, Objective
from ddpo.parallel import pieces, ranks
from ddpo.parallel.seeds import Purpose, generator
from ddpo.parallel.sizes import Sizes
from ddpo.prompts import Prompt, PromptSet
from ddpo.records import checkpoint
from ddpo.rewards import Values
from ddpo.rollout import pairs as offline
from ddpo.rollout.gradients import ImageGradients, Layers
from ddpo.rollout.sample import Sampler, sample
from ddpo.rollout.trajectory import Trajectory, join
from ddpo.scoring import Scoring
from ddpo.training.batches import batch_of
from ddpo.training.credit import Mixture
from ddpo.training.gates import check_ranks, check_ratios
from ddpo.training.halving import IMAGES, PAIRS, Halving
from ddpo.training.measures import Measured, Metrics, kl_to_reference, peak_gb
from ddpo.training.old_policy import OldPolicy
from ddpo.training.selection import Columns, draw
from ddpo.training.terms import Terms
from ddpo.training.terms.denoising_errors import DenoisingErrors
from ddpo.training.terms.log_probs import LogProbs
from ddpo.training.terms.outcomes import replays
from ddpo.training.update import Pass, clip_gradients, loss_scale, measure_ratios

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
    shared_noise  the samples of one prompt begin from one x_T
    gradient_layers  the layers whose gradients are collected while images are sampled; None: the
                  first update scores them again, as all others do
    ratio_gate    the |ratio - 1| before the first update that is let pass; None: the usual limit
    progress      called with a phase, how much of it is done, and of how much
    iteration     those that are done
    gated         the checks around the first update have passed in this process
    halving       the sizes of calls that were halved when memory ran out
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
    shared_noise: bool = False
    gradient_layers: Layers | None = None
    ratio_gate: float | None = None
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None
    iteration: int = field(default=0, init=False)
    skipped_in_a_row: int = field(default=0, init=False)
    gated: bool = field(default=False, init=False)
    halving: Halving = field(default_factory=Halving, init=False)
    _begun: _Begun | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.old_policy = OldPolicy(self.policy, self.objective)

    def iterate(self) -> Metrics:
        """One iteration; its metrics.

        Raises Stopped, with the weights as before, when the run must end.
        """
        started = time.perf_counter()
        self._begun = _Begun(self.lr_scheduler.last_epoch, self.mixture.state())
        key = (Purpose.GLOBAL, self.seed, self.iteration, ranks.state().process_index)
        torch.manual_seed(generator(*key).initial_seed())
        prompts = self.draw()
        gradients = self.image_gradients()
        trajectory, values, guards, times = self.rollout(prompts, gradients)
        batch, outcome = self.outcome(prompts, trajectory, values)
        measured, terms = Measured(self.objective.ratio_bound), self.terms(trajectory, epoch=0)
        work = Pass(
            *(terms, batch, self.objective, self.sizes.micro_batch, measured, gradients),
            moved=False,
            halving=self.halving,
        )
        self.gate(work)
        if gradients is not None:  # the update scores no pair, so that a few stand for all
            measure_ratios(work, self.present_sampler, self.sizes.images)
        before_update = time.perf_counter()
        trained = batch.rows(batch.present.nonzero().flatten())
        updated = {**self.update(work), **self.objective.metrics(trained)}
        times["time/update"] = time.perf_counter() - before_update
        updated["kl_ref"] = kl_to_reference(
            self.policy, self.present_sampler, trajectory, self.sizes.images
        )
        self.old_policy.follow(self.iteration)
        self.resize(self.halving.of_all_ranks())
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
        """This iteration's prompts, `samples_per_prompt` times each."""
        return draw(self.prompts, self.sizes, self.seed, self.iteration)

    def image_gradients(self) -> ImageGradients | None:
        """What collects the gradient of the first update while images are sampled."""
        if self.gradient_layers is None:
            return None
        return ImageGradients(
            self.gradient_layers, self.trained_steps(), loss_scale(self.policy.half_precision)
        )

    def trained_steps(self) -> Bool[Tensor, " T"]:
        """The denoising steps of this iteration that enter the loss."""
        noise = generator(Purpose.TIMESTEPS, self.seed, self.iteration)
        return self.columns.subset(self.present_sampler.steps.stochastic, noise)

    def rollout(
        self, prompts: list[Prompt], gradients: ImageGradients | None = None
    ) -> tuple[Trajectory, Values, Metrics, Metrics]:
        """This rank's trajectories (whole groups), all ranks' rewards, guards' means, seconds."""
        state, started = ranks.state(), time.perf_counter()
        mine = self.sizes.samples(self.sizes.share(state.process_index, state.num_processes))
        parts, measured, medium = [], [], self.policy.medium
        with ranks.together(), torch.no_grad(), self.old_policy.samples():
            for part in self.trajectories([prompts[i] for i in mine], mine, gradients):
                metadata = [prompt.metadata for prompt in part.prompts]
                self.scorer.submit(part.images, [prompt.text for prompt in part.prompts], metadata)
                measured.append(medium.measure(part.images))
                part.samples = [mine[i] for i in part.samples]
                parts.append(part)
                self.progress("sampling", part.samples[-1] - mine[0] + 1, len(mine))
            sampled = time.perf_counter()
            values = self.scorer.collect()
        times = {"time/sample": sampled - started, "time/reward": time.perf_counter() - sampled}
        everyone = {
            name: torch.tensor(ranks.gather(column.tolist())) for name, column in values.items()
        }
        columns = {
            name: torch.tensor(ranks.gather(column), dtype=torch.float64)
            for name, column in joined(measured).items()
        }
        means = {
            f"guard/{name}": column.double().mean().item()
            for name, column in medium.compared(columns).items()
        }
        return join(parts), everyone, means, times

    def trajectories(
        self, prompts: list[Prompt], numbers: list[int], gradients: ImageGradients | None = None
    ) -> Iterator[Trajectory]:
        """Sampled by the policy, or recorded ones.

        With them goes what the objective needs of the reference.
        """
        if self.pairs_folder is not None:
            return offline.recorded(
                self.policy, prompts, self.pairs_folder, self.sampler.batch_size
            )
        keys = [(Purpose.NOISE, self.seed, self.iteration, number) for number in numbers]
        groups = [self.sizes.group(number) for number in numbers]
        starts = [(Purpose.START, self.seed, self.iteration, group) for group in groups]
        wanted = {"logp_ref": "logp_ref", "kl": "output_ref", "kl_old": "output_old"}
        needs = self.objective.needs if self.objective.scores_steps else ()
        reference = [wanted[need] for need in needs if need in wanted]

        def rest(first: int, batch_size: int) -> Iterator[Trajectory]:
            sampler = replace(self.present_sampler, batch_size=batch_size)
            return sample(
                *(self.policy, sampler, prompts[first:], keys[first:], reference),
                guidance_scale=self.columns.guidance_scale,
                starts=starts[first:] if self.shared_noise else None,
                gradients=gradients,
            )

        size = self.halving.sizes.get(IMAGES, self.sampler.batch_size)
        return self.halving.sampled(rest, len(prompts), size, gradients)

    def resize(self, sizes: Mapping[str, int]) -> None:
        """Other sizes of network calls, by the options' names."""
        self.sampler = replace(self.sampler, batch_size=sizes.get(IMAGES, self.sampler.batch_size))
        self.sizes = replace(self.sizes, micro_batch=sizes.get(PAIRS, self.sizes.micro_batch))

    def terms(self, trajectory: Trajectory, epoch: int) -> Terms:
        """What the objective is a function of.

        Each pass over the images has denoising errors of its own.
        """
        own = self.columns.guidance_scale
        scale = self.sampler.guidance_scale if own is None else own
        sampler = replace(self.present_sampler, guidance_scale=scale)
        if self.objective.scores_steps:
            return LogProbs(self.policy, sampler, trajectory)
        if replay := self.objective.pathwise:
            reference, decode_batch = "kl" in self.objective.needs, self.sizes.decode_batch
            work = (replay, self.mixture.rewards, decode_batch or self.sizes.micro_batch, reference)
            key = self.seed, self.iteration, epoch
            return replays(self.policy, sampler, trajectory, *work, key)
        groups = [self.sizes.group(sample) for sample in trajectory.samples]
        keys = [(Purpose.DENOISING, self.seed, self.iteration, epoch, group) for group in groups]
        of_objective = self.objective.needs, self.objective.mixture
        own_options = (self.columns.draws, *of_objective, self.columns.window)
        return DenoisingErrors(self.policy, sampler, trajectory, keys, *own_options)

    def outcome(
        self, prompts: list[Prompt], trajectory: Trajectory, values: Values
    ) -> tuple[Batch, Metrics]:
        """The batch of all ranks, and what the rewards were."""
        group = torch.tensor([self.sizes.group(sample) for sample in range(len(prompts))])
        credit, metrics = self.mixture.credit(values, prompts, group)
        columns = self.trained_steps() if self.objective.scores_steps else None
        draws = self.objective.draws(self.columns.draws)
        return batch_of(trajectory, credit, group, self.policy.device, columns, draws), metrics

    def gate(self, work: Pass) -> None:
        """Before the first update, a step scored again must have the recorded log-probability."""
        if not self.gated:
            check_ratios(work, self.ratio_gate)

    def update(self, work: Pass) -> Metrics:
        """`epochs` passes of `minibatches` steps.

        A step whose loss or gradient is not finite is left out.
        """
        parameters = list(self.policy.parameters().values())
        present = work.batch.present.tolist()
        learners = [sample for sample, known in enumerate(present) if known]
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
            "left_out": 1 - len(work.moving(learners)) / max(len(learners), 1),
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
            check_ranks(self.policy)
            self.gated = True

    @property
    def present_sampler(self) -> Sampler:
        """That of the iteration which is next, or in progress: its window may have moved."""
        return self.sampler.at(self.iteration)

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

        All of it is JSON but `tensors`, by kind and name. Where weights lie in pieces all ranks
        call it together, outside of `ranks.together`, and rank 0 gets the whole ones.
        """
        parameters = self.policy.parameters()
        moments = checkpoint.optimizer_tensors(self.optimizer, parameters)
        tensors = {"parameters": dict(parameters), "optimizer": moments}
        tensors |= self.old_policy.tensors()
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
        return {**state, "tensors": {kind: pieces.gathered(own) for kind, own in tensors.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up a state. Raises UserError where it is of another model."""
        parameters = self.policy.parameters()
        tensors = {kind: pieces.cut(own, parameters) for kind, own in state["tensors"].items()}
        checkpoint.restore_parameters(parameters, tensors["parameters"])
        checkpoint.restore_optimizer(self.optimizer, parameters, tensors["optimizer"])
        self.old_policy.restore(tensors)
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
