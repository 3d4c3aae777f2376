"""PartiPrompts: 1,632 prompts (P2) from one word to a paragraph, by category and challenge.

Yu et al. 2022, arXiv 2206.10789; Apache-2.0. Read from nateraw/parti-prompts on the Hub at a fixed
revision. Not seen here: whether all 1,632 differ; one that stands there twice is given once.
"""

from ._hub import rows

COLUMNS = {"prompt": "Prompt", "category": "Category", "challenge": "Challenge"}
REVISION = "944b156abfdad7627c3221b5ec4f6a6fb060a197"


def partiprompts() -> list[dict[str, str]]:
    """1,632 prompts from one word to a paragraph, by category and challenge; from the Hub."""
    return rows("nateraw/parti-prompts", "PartiPrompts.tsv", 1632, COLUMNS, REVISION)
