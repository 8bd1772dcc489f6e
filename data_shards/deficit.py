"""Whose turn it is: a sequence over several sources, each at its share, as a pure function of the place.

Which source place n belongs to is decided by largest deficit: the source that lags most behind its share of the first
n + 1 places gives the next one. With whole-number weights that add up to D the choice repeats after D places with
every source exactly at its share (the deficits are multiples of 1/D above -1 that add up to 0, so after D places all
are 0). One period is computed when the sequence is opened; everything at any n follows from it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from job.errors import InputError

_PERIOD = 1 << 17  # shares are rounded to 1/131072, at least that much each


class LargestDeficit:
    """The order of turns of several sources.

    Args:
        weights: relative and positive, one per source.

    Attributes:
        parts: the weights as whole numbers without common divisor.
        choice: uint16 [D], the source of each place of one period.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.parts = whole_parts(weights)
        self.choice, self._before = one_period(self.parts)

    def choose(self, place: int) -> tuple[int, int]:
        """(number of the source, how many places it had before) of place n >= 0."""
        period, inside = divmod(place, len(self.choice))
        source = int(self.choice[inside])
        return source, period * self.parts[source] + int(self._before[inside, source])

    def counts(self, places: int) -> list[int]:
        """How many of the first `places` places belong to each source."""
        periods, inside = divmod(places, len(self.choice))
        return [periods * part + int(before) for part, before in zip(self.parts, self._before[inside])]


def check_weights(names: Sequence[str], weights: Sequence[float | None], unit: str) -> list[float] | None:
    """The weights as floats, or None where no source has one (then its size in `unit` decides).

    Raises `InputError` where two sources share a name, where only some have a weight, or one is not positive.
    """
    if twice := [name for name in names if list(names).count(name) > 1]:
        raise InputError(f"two data sources are named '{twice[0]}'; give each its own name")
    if all(weight is None for weight in weights):
        return None
    for name, weight in zip(names, weights):
        if weight is None or not math.isfinite(weight) or weight <= 0:
            raise InputError(
                f"data source '{name}' has weight {weight}: give every source a positive weight, or none of them one "
                f"(then they are read in proportion to their {unit})"
            )
    return [float(weight) for weight in weights if weight is not None]


def whole_parts(weights: Sequence[float]) -> list[int]:
    """Weights as whole numbers without common divisor that add up to at most 131072 (nearly)."""
    total = math.fsum(weights)
    exact = [weight / total * _PERIOD for weight in weights]
    parts = [max(1, round(share)) for share in exact]
    divisor = math.gcd(*parts)
    return [part // divisor for part in parts]


def one_period(parts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The source of each place of a period: uint16 [D]; how many each had before it: int32 [D + 1, sources]."""
    total = sum(parts)
    deficits = [0] * len(parts)
    choice = np.empty(total, np.uint16)
    for place in range(total):
        deficits = [deficit + part for deficit, part in zip(deficits, parts)]
        source = deficits.index(max(deficits))  # a tie goes to the source named first
        deficits[source] -= total
        choice[place] = source
    before = np.zeros((total + 1, len(parts)), np.int32)
    np.cumsum(choice[:, None] == np.arange(len(parts)), axis=0, out=before[1:])
    return choice, before
