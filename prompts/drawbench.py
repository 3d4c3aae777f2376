"""DrawBench: 200 prompts that are hard on counts, colors, places, rare words, text and reason.

Saharia et al. 2022, arXiv 2205.11487; the authors state no license. Read from the copy in
ymhao/HPDv2 (Apache-2.0) on the Hub at a fixed revision, for which HPS v2 is given; it has no
categories. Not seen here: whether all 200 differ; one that stands there twice is given once.
"""

from ._hub import rows

REVISION = "fd163b223b6faf112eccafeabe2e31a0e950f177"


def drawbench() -> list[dict[str, str]]:
    """200 prompts that are hard on counts, colors, places, rare words and text; from the Hub."""
    return rows("ymhao/HPDv2", "benchmark/drawbench.json", 200, revision=REVISION)
