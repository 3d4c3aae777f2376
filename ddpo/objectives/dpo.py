"""Diffusion-DPO: preferences on denoising errors (Wallace et al. 2023, arXiv 2311.12908)."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from ddpo.objectives import Batch, PositiveFloat, declare


@declare(needs=("errors_ref",), compares=True, denoising_errors=True)
def dpo(
    errors: Float[Tensor, "B K"], batch: Batch, *, beta: PositiveFloat = 2500.0
) -> Float[Tensor, ""]:
    """Diffusion-DPO: denoise the better image of a pair better than before, the worse one worse.

    e(x_0) = |eps - eps_theta(x_t, t, c)|^2 / D,   e_ref likewise,   d = e - e_ref
    L = mean over pairs and (t, eps) of -log sigmoid(-beta (d(better) - d(worse)))

    Both images of a pair are taken at one t with one eps.

    Pairs are all of a prompt's images, ranked by reward, or with `objective.offline` those of a
    file with lines {"prompt": ..., "chosen": "a.png", "rejected": "b.png"}.

    `beta` is the paper's beta T omega(lambda_t) with a constant omega, for errors that are means
    over latent dimensions: it takes 2,000 to 5,000 at D = 16,384; for D dimensions take that times
    D / 16,384.

    Differs: a rollout's images are drawn under the present policy; the paper's are a fixed data set
    (`offline`).
    """
    better, worse = batch.comparisons()
    change = errors - batch.errors_ref
    return batch.mean(-logsigmoid(-beta * (change[better] - change[worse])))
