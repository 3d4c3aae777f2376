"""ddpo.evaluation.table: where the pictures stand, and that they are the ones that were given."""

import numpy as np
import pytest
from PIL import Image

from ddpo.evaluation import table


def noise(size: tuple[int, int], seed: int) -> Image.Image:
    width, height = size
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


def places(page: Image.Image, picture: Image.Image) -> list[tuple[int, int]]:
    """The corners (x, y) at which `page` holds exactly `picture`."""
    big, small = np.asarray(page), np.asarray(picture)
    height, width = small.shape[:2]
    corners = np.argwhere((big == small[0, 0]).all(-1))
    return [
        (int(x), int(y))
        for y, x in corners
        if np.array_equal(big[y : y + height, x : x + width], small)
    ]


def test_pictures_stand_in_rows_and_columns_unchanged() -> None:
    cells = [[noise((150, 130), 10 * r + c) for c in range(3)] for r in range(2)]
    page = table.table(
        cells, ["a fox", "a cat"], ["base", "000010", "tuned"], [["0.1", "0.2", "0.3"]] * 2
    )
    found = [[places(page, cell) for cell in row] for row in cells]
    assert all(len(where) == 1 for row in found for where in row)
    xs = [[where[0][0] for where in row] for row in found]
    ys = [[where[0][1] for where in row] for row in found]
    assert xs[0] == xs[1] == [xs[0][0] + c * (150 + table.GAP) for c in range(3)]
    assert ys[0] == [ys[0][0]] * 3 and ys[1] == [ys[1][0]] * 3 and ys[1][0] > ys[0][0] + 130
    assert page.width == xs[0][2] + 150 + table.MARGIN


@pytest.mark.parametrize(
    ("side", "shown"), [(32, 128), (64, 128), (100, 200), (200, 200), (256, 256), (512, 256)]
)
def test_pictures_are_shown_at_a_readable_size(side: int, shown: int) -> None:
    page = table.table([[Image.new("RGB", (side, side), "#ff0000")]], [""], [""])
    red = np.argwhere((np.asarray(page) == (255, 0, 0)).all(-1))
    assert (red.max(0) - red.min(0) + 1).tolist() == [shown, shown]
    assert (
        page.size == (shown + 2 * table.MARGIN,) * 2
        or page.height - shown - 2 * table.MARGIN <= table.GAP
    )


def test_scale_is_the_factor_of_enlargement() -> None:
    picture = noise((20, 10), 0)
    for factor in (1, 3):
        page = table.table([[picture]], ["x"], ["y"], scale=factor)
        assert places(page, picture.resize((20 * factor, 10 * factor), Image.Resampling.LANCZOS))


def test_labels_and_captions_are_written_where_they_belong() -> None:
    cell = Image.new("RGB", (128, 128), "#ff0000")

    def ink(row: str = "", column: str = "", caption: str = "") -> tuple[np.ndarray, np.ndarray]:
        page = np.asarray(table.table([[cell]], [row], [column], [[caption]])).astype(int)
        return np.argwhere((page == (255, 0, 0)).all(-1)), np.argwhere(
            (np.ptp(page, axis=-1) < 30) & (page[..., 0] < 200)
        )

    red, dark = ink(row="a fox")
    assert len(dark) and dark[:, 1].max() < red[:, 1].min()  # left of the picture
    red, dark = ink(column="base")
    assert len(dark) and dark[:, 0].max() < red[:, 0].min()  # above
    red, dark = ink(caption="0.5")
    assert len(dark) and dark[:, 0].min() > red[:, 0].max()  # below
    assert abs(dark[:, 1].mean() - red[:, 1].mean()) < 3  # and centered


def test_pictures_of_several_shapes_are_centered_and_no_caption_covers_them() -> None:
    """Each is whole, in the middle of its cell; the captions stand in one line below the row's
    tallest."""
    shapes = [(128, 60), (128, 128), (90, 128)]
    cells = [[noise(shape, i) for i, shape in enumerate(shapes)]]
    page, bare = (
        table.table(cells, ["a fox"], ["wide", "square", "tall"], [[text] * 3], scale=1)
        for text in ("0.5", "")
    )
    ((left, top),) = places(page, cells[0][1])
    corners = [left + c * (128 + table.GAP) for c in (-1, 0, 1)]
    for picture, x in zip(cells[0], corners, strict=True):
        width, height = picture.size
        assert places(page, picture) == [(x + (128 - width) // 2, top + (128 - height) // 2)]
    written, plain = np.asarray(page), np.asarray(bare)
    assert np.array_equal(written[: top + 128], plain[: top + 128])
    for x in corners:
        assert (written[top + 128 :, x : x + 128] < 200).any(), "a caption under each"


@pytest.mark.parametrize(
    "text",
    ["a fox riding a bike through a very long prompt indeed", "w" * 60, "w" * 40 + "_w", "", "  "],
)
def test_lines_are_no_wider_than_asked(text: str) -> None:
    font = table.ImageFont.load_default(15)
    lines = table._wrap(text, font, 112)
    assert all(font.getlength(line) <= 112 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    if " a " in text:
        assert " ".join(lines) == text  # broken between words only


def test_a_long_name_is_broken_between_its_parts() -> None:
    font = table.ImageFont.load_default(15)
    assert table._wrap("jpeg_compressibility: 1", font, 112) == ["jpeg_", "compressibility:", "1"]
    assert table._wrap("WW", font, 2) == ["W", "W"], "a letter is not broken"


def test_long_prompts_make_their_row_taller() -> None:
    cells = [[noise((130, 130), 0)], [noise((130, 130), 1)]]
    page = table.table(cells, ["a very long prompt " * 12, "a cat"], ["base"])
    (_, first), (_, second) = (places(page, row[0])[0] for row in cells)
    assert second - first > 130 + 2 * table.GAP


def test_what_the_font_lacks_is_spelt_otherwise() -> None:
    cell = Image.new("RGB", (128, 128))
    assert table.table([[cell]], ["un café −3"], ["x"]) == table.table(
        [[cell]], ["un cafe -3"], ["x"]
    )


def test_labels_that_do_not_match_are_refused() -> None:
    cell = Image.new("RGB", (8, 8))
    with pytest.raises(
        ValueError, match=r"cells: the rows have \[1\] entries, but there are 1 row labels and 2"
    ):
        table.table([[cell]], ["x"], ["base", "tuned"])
    with pytest.raises(ValueError, match="captions"):
        table.table([[cell]], ["x"], ["base"], [[]])


def test_beside_keeps_both_and_aligns_their_tops() -> None:
    left, right = (table.table([[noise((130, 130), i)]], ["x"], ["y"], title="t") for i in (0, 1))
    page = table.beside([left, right])
    assert page.size == (left.width + right.width, left.height)
    assert page.crop((left.width, 0, *page.size)) == right
