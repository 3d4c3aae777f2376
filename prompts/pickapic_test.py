"""Pick-a-Pic's test prompts: 500 written by users of the application.

Kirstain et al. 2023, arXiv 2305.01569; the card states no license, and some prompts are not for all
eyes. Read from the split test_unique of yuvalkirstain/pickapic_v1_no_images on the Hub at a fixed
revision, with pyarrow (pip install 'ddpo[datasets]'). Not seen here: the rows themselves; the
number and the column are those of the data set's card.
"""

from ._hub import rows

FILE = "data/test_unique-00000-of-00001-73a51cbb6488571d.parquet"
REVISION = "a3592a4f2e6adb7646ef56f3bb18e2968348a163"


def pickapic_test() -> list[dict[str, str]]:
    """500 prompts that users of Pick-a-Pic wrote, its split test_unique; from the Hub."""
    columns = {"prompt": "caption"}
    return rows("yuvalkirstain/pickapic_v1_no_images", FILE, 500, columns, REVISION)
