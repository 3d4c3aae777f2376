"""HPDv2's test prompts, anime: 800 captions that DiffusionDB's users or COCO's authors wrote.

Wu et al. 2023, arXiv 2306.09341; Apache-2.0. Read from ymhao/HPDv2 on the Hub at a fixed revision.
The benchmark's score is the mean of HPS v2 (`hps`) over one picture of each. Not seen here: whether
all 800 differ; one that stands there twice is given once.
"""

from ._hub import rows

REVISION = "fd163b223b6faf112eccafeabe2e31a0e950f177"


def hpdv2_anime() -> list[dict[str, str]]:
    """HPDv2's 800 test prompts of anime, for which HPS v2 is given; from the Hub."""
    found = rows("ymhao/HPDv2", "benchmark/anime.json", 800, revision=REVISION)
    return [{**row, "style": "anime"} for row in found]
