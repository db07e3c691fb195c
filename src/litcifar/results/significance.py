"""Whether a difference is more than chance: Welch's interval for means over seeds, McNemar's test for two networks."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

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
    if statistics.variance(a) + statistics.variance(b) == 0:  # as in a re-run of the same seed
        return Difference(mean, mean, mean)
    interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval(LEVEL)
    return Difference(mean, float(interval.low), float(interval.high))


def binomial_p(a: int, b: int) -> float:
    """Two-sided exact p-value of a against b heads and tails of a fair coin; 1 where there are none."""
    return float(stats.binomtest(a, a + b).pvalue) if a + b else 1.0
