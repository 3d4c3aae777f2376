"""Plain numbers with a range, outside of which a configuration is refused: `lr: PositiveFloat = 3e-4`."""

import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any, NamedTuple, get_args


class Range(NamedTuple):
    """What must hold of a value: in words, after "must be", and as a test that NaN fails."""

    words: str
    holds: Callable[[float], bool]


Finite = Annotated[float, Range("finite", math.isfinite)]
PositiveFloat = Annotated[float, Range("above 0 and finite", lambda value: 0 < value < math.inf)]
NonNegativeFloat = Annotated[float, Range("at least 0", lambda value: 0 <= value < math.inf)]
PositiveInt = Annotated[int, Range("at least 1", lambda value: value >= 1)]
NonNegativeInt = Annotated[int, Range("at least 0", lambda value: value >= 0)]
Seed = Annotated[int, Range("at least 0 and below 2^64", lambda value: 0 <= value < 2**64)]
UnitFloat = Annotated[float, Range("at least 0 and below 1", lambda value: 0 <= value < 1)]
Share = Annotated[float, Range("above 0 and at most 1", lambda value: 0 < value <= 1)]
AtLeastOne = Annotated[float, Range("at least 1", lambda value: 1 <= value < math.inf)]


def ranges(hint: Any) -> Iterator[Range]:
    """Those that a type is annotated with, of itself or of what it consists of."""
    yield from (each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Range))
    for inner in get_args(hint):
        yield from ranges(inner)
