"""One thread a worker, no network, and the shapes annotated in the formulas are checked at every
call."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import jaxtyping
import torch

FORMULAS = [
    "ddpo.samplers",
    "ddpo.advantages",
    "ddpo.training.credit",
    "ddpo.training.selection",
    "ddpo.objectives",
    "ddpo.images",
]

torch.set_num_threads(1)
jaxtyping.install_import_hook(FORMULAS, "beartype.beartype")
