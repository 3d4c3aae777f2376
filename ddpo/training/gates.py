"""Checks before and after the first update: what would train on noise is stopped."""

import torch

from ddpo.errors import Stopped
from ddpo.models import Policy
from ddpo.parallel import pieces, ranks
from ddpo.rollout.sample import chunks
from ddpo.training.terms.log_probs import LogProbs
from ddpo.training.update import Pass

WIDEST_GATE = 1e-2
"""However wide the trust region, a ratio further from 1 before any update is a mistake."""


def gate_limit(ratio_bound: float | None, half_precision: bool) -> float:
    """The |ratio - 1| that the ratio gate lets pass: a tenth of the region, above rounding."""
    return max(min(0.1 * (ratio_bound or 0.0), WIDEST_GATE), 1e-5 if half_precision else 1e-6)


def check_ratios(work: Pass, own: float | None = None) -> None:
    """Before the first update, a step scored again must have the recorded log-probability.

    `own` is a limit in the place of the usual one. Raises Stopped where a ratio is further from 1.
    """
    usual = gate_limit(work.objective.ratio_bound, work.terms.policy.half_precision)
    limit, worst = usual if own is None else own, first_pass_deviation(work)
    if not worst <= limit:
        raise Stopped(
            f"ratio gate: before any update |ratio - 1| is {worst:.1e}, above {limit:.1e}: "
            "the policy that is scored is not the one that sampled; look for dropout, another "
            "precision or another guidance in the update; where the device rounds so, "
            "trainer.ratio_gate sets the limit"
        )


def check_ranks(policy: Policy) -> None:
    """After the first update ranks must hold equal weights, or pieces cut from equal ones.

    Raises Stopped where they differ.
    """
    cut_from = getattr(policy, "cut_from", None)
    if cut_from is not None and not ranks.agree(cut_from):
        raise Stopped(
            "rank gate: ranks cut their pieces from different weights; look for another copy of "
            "model.pretrained on one of them"
        )
    # a piece is in one place only
    weights = {k: v for k, v in policy.parameters().items() if not pieces.is_piece(v)}
    different = [name for name, weight in weights.items() if not ranks.agree(weight.detach())]
    if different:
        raise Stopped(
            f"rank gate: after the first update {len(different)} of {len(weights)} "
            f"trained weights differ between ranks, the first is {different[0]}: "
            "look for another version of torch or of the code, or for a broken device, "
            "on one of them"
        )


def first_pass_deviation(work: Pass) -> float:
    """max |ratio - 1| before any update, at its shapes, on pairs of all steps and as many samples.

    0 where the objective has no log-probabilities.
    """
    if not isinstance(work.terms, LogProbs):
        return 0.0
    columns = torch.tensor(work.terms.columns(work.batch))
    rows = torch.arange(len(columns)) % len(work.terms.trajectory.samples)

    def deviations() -> list[float]:
        worst = [0.0]
        for indices, genuine in chunks(len(columns), work.micro_batch):
            chunk = work.chunk(rows[indices], columns[indices], genuine)
            logp = work.terms(chunk.rows, chunk.columns)["logp"][:genuine]
            old = work.batch.logp_old[chunk.place][:genuine]
            worst.append(((logp - old).exp() - 1).abs().max().item())
        return worst

    with torch.no_grad():
        worst = work.within_memory(deviations)
    # Python's max loses a NaN
    return torch.tensor(ranks.gather(worst), dtype=torch.float64).max().item()
