"""Whether a difference is more than chance: Welch's interval for means over seeds, McNemar's test for two networks."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95  # of the interval; 1 - LEVEL is where a p-value counts as small


@dataclass(frozen=True)
class Difference:
    """mean(a) - mean(b), and the interval that holds the true difference in `LEVEL` of all cases."""

    mean: float
    low: float
    high: float

    @property
    def is_real(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def difference(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Welch's t interval (Welch 1947), which takes neither the deviations nor the numbers of values to be equal.

    Raises ValueError where a or b has fewer than two values: then nothing is known of the deviation.
    """
    mean = statistics.fmean(a) - statistics.fmean(b)
    of_a, of_b = statistics.variance(a) / len(a), statistics.variance(b) / len(b)
    if of_a + of_b == 0:
        return Difference(mean, mean, mean)
    freedom = (of_a + of_b) ** 2 / (of_a**2 / (len(a) - 1) + of_b**2 / (len(b) - 1))
    margin = t_quantile((1 + LEVEL) / 2, freedom) * math.sqrt(of_a + of_b)
    return Difference(mean, mean - margin, mean + margin)


def t_quantile(share: float, freedom: float) -> float:
    """The value below which Student's t with `freedom` degrees, at least 1, lies with probability `share`, 0.5 to 1.

    With t = sqrt(freedom) tan(x) the density is proportional to cos(x) ** (freedom - 1), for x from 0 to pi / 2.
    """
    constant = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        below = 0.5 + constant * _integral(middle, freedom - 1)
        low, high = (middle, high) if below < share else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def binomial_p(a: int, b: int) -> float:
    """Two-sided exact p-value of a against b heads and tails of a fair coin; 1 where there are none."""
    tosses, ways, ways_to_be_as_rare = a + b, 1, 0
    for heads in range(min(a, b) + 1):
        ways_to_be_as_rare += ways
        ways = ways * (tosses - heads) // (heads + 1)
    return min(1.0, 2 * ways_to_be_as_rare / 2**tosses)


def _integral(end: float, power: float, parts: int = 200) -> float:
    """Of cos(x) ** power from 0 to `end`, by Simpson's rule."""
    values = [math.cos(end * place / parts) ** power for place in range(parts + 1)]
    return end / parts / 3 * (values[0] + values[-1] + 4 * sum(values[1:-1:2]) + 2 * sum(values[2:-1:2]))
