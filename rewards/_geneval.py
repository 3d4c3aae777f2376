"""GenEval's rules: whether objects, counts, colors and places are those of a prompt's metadata.

Ghosh et al. 2023, arXiv 2310.11513, section 3. Boxes are (left, top, right, bottom) in pixels,
those of one class with the surest first.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Box = tuple[float, float, float, float]
Colors = Callable[[str, Sequence[Box]], list[str]]
"""The color of each of a class's boxes."""

MARGIN = 0.1
"""Centers that are nearer to each other than this share of both sizes are in no relation."""


def satisfied(row: Mapping[str, Any], objects: Mapping[str, Sequence[Box]], colors: Colors) -> bool:
    """Whether a picture shows all of `include` and nothing of `exclude`.

    Of a class only as many boxes are looked at as are asked for, the surest ones. Each of them must
    have the color, and must stand in the relation to each of those that an entry before it found.
    """
    groups: list[Sequence[Box] | None] = []
    for wanted in row["include"]:
        boxes = objects.get(wanted["class"], ())[: wanted["count"]]
        right = len(boxes) == wanted["count"]
        if right and "color" in wanted:
            right = all(color == wanted["color"] for color in colors(wanted["class"], boxes))
        if right and "position" in wanted:
            relation, target = wanted["position"]
            others = groups[target]
            right = others is not None and all(
                relation in relations(box, other) for box in boxes for other in others
            )
        groups.append(boxes if right else None)
    crowded = any(
        len(objects.get(each["class"], ())) >= each["count"] for each in row.get("exclude", ())
    )
    return None not in groups and not crowded


def relations(box: Box, other: Box) -> set[str]:
    """Where the first box is, seen from the other: left of, right of, above, below.

    The offset of the centers is shortened in each direction by the margin; a direction counts where
    what is left is more than half of the whole offset, so that two may count.
    """
    offset = [(box[i] + box[i + 2] - other[i] - other[i + 2]) / 2 for i in (0, 1)]
    sizes = [box[i + 2] - box[i] + other[i + 2] - other[i] for i in (0, 1)]
    left = [
        math.copysign(max(abs(each) - MARGIN * size, 0.0), each)
        for each, size in zip(offset, sizes, strict=True)
    ]
    if not any(left):
        return set()
    x, y = (each / math.hypot(*offset) for each in left)
    found = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {name for name, holds in found.items() if holds}
