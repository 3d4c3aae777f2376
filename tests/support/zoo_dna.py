"""Rewards on sequences: they need no weights but those in the repository."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

ZOO: dict[str, Callable[[Path], dict[str, Any]]] = {
    "dna_activity": lambda folder: {},
    "dna_judge": lambda folder: {},
    "dna_accessibility": lambda folder: {},
    "dna_true_activity": lambda folder: {},
    "hydropathy": lambda folder: {},
    "dna_kmers": lambda folder: {"drawn": 500},
}
