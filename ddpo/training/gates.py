"""Checks before and after the first update: what would train on noise is stopped."""

import torch

from ddpo.parallel import ranks
from ddpo.rollout.sample import chunks
from ddpo.training.terms.log_probs import LogProbs
from ddpo.training.update import Pass

WIDEST_GATE = 1e-2
"""However wide the trust region, a ratio further from 1 before any update is a mistake."""


def gate_limit(ratio_bound: float | None, half_precision: bool) -> float:
    """The |ratio - 1| that the ratio gate lets pass: a tenth of the region, above rounding."""
    return max(min(0.1 * (ratio_bound or 0.0), WIDEST_GATE), 1e-5 if half_precision else 1e-6)


def first_pass_deviation(work: Pass) -> float:
    """max |ratio - 1| before any update, at its shapes, on pairs of all steps and as many samples.

    0 where the objective has no log-probabilities.
    """
    if not isinstance(work.terms, LogProbs):
        return 0.0
    columns = torch.tensor(work.terms.columns(work.batch), device=work.terms.policy.device)
    rows = torch.arange(len(columns), device=columns.device) % len(work.terms.trajectory.samples)
    worst = [0.0]
    with torch.no_grad():
        for indices, genuine in chunks(len(columns), work.micro_batch):
            logp = work.terms(rows[indices], columns[indices])["logp"][:genuine]
            old = work.batch.logp_old[work.globally(rows[indices]), columns[indices]][:genuine]
            worst.append(((logp - old).exp() - 1).abs().max().item())
    # Python's max loses a NaN
    return torch.tensor(ranks.gather(worst), dtype=torch.float64).max().item()
