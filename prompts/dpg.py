"""DPG-Bench: 1,065 dense prompts, a paragraph each, with the questions that judge a picture.

Hu et al. 2024 (ELLA), arXiv 2403.05135; Apache-2.0. The authors keep it beside their code; it is
read from the copy Jialuo21/DPG-Bench on the Hub, with pyarrow (pip install 'ddpo[datasets]'). Their
score is the share of the questions that a model for visual questions answers with yes. Not seen
here: the file's name and rows; the number and the columns are those of the copy's card.
"""

from typing import Any

from ._hub import rows

COLUMNS = {"prompt": "prompt", "item_id": "item_id", "questions": "questions"}


def dpg() -> list[dict[str, Any]]:
    """1,065 dense prompts, a paragraph each, with questions that judge a picture; from the Hub."""
    return rows("Jialuo21/DPG-Bench", "data/test-00000-of-00001.parquet", 1065, COLUMNS)
