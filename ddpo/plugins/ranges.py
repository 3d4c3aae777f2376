"""Plain values with a range: a configuration outside of it is refused (`lr: PositiveFloat = 3e-4`).

Any other is made in the same way: `Annotated[int, Field(ge=1, le=100)]`, with the Field of
pydantic.
"""

from typing import Annotated

from pydantic import Field

Finite = Annotated[float, Field(allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
UnitFloat = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
ZeroToOne = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
AtLeastOne = Annotated[float, Field(ge=1, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0.001, le=86400, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**64)]
JpegQuality = Annotated[int, Field(ge=1, le=100)]
NonBlank = Annotated[str, Field(pattern=r"\S")]
