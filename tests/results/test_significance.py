"""The statistics, against published tables and values computed by hand."""

import math

import pytest

from litcifar.results.significance import binomial_p, difference


def test_welchs_interval_of_equal_deviations() -> None:
    """Deviation 1 each, n=3: standard error sqrt(2/3), 4 degrees of freedom, 2.776."""
    found = difference([11, 12, 13], [7, 8, 9])
    assert found.mean == 4
    assert found.high - found.mean == pytest.approx(2.7764 * math.sqrt(2 / 3), abs=1e-3)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)
    assert found.is_real


def test_welchs_interval_of_unequal_deviations_and_numbers() -> None:
    """Variances 4 / 2 = 2 and 1 / 3: (7/3)^2 / (2^2 / 1 + (1/3)^2 / 2) = 1.342 degrees of freedom."""
    found = difference([4 - math.sqrt(2), 4 + math.sqrt(2)], [1, 2, 3])
    assert found.high - found.mean == pytest.approx(7.112 * math.sqrt(7 / 3), rel=1e-3)  # the quantile of 1.342 degrees
    assert not found.is_real


def test_one_value_tells_no_deviation_and_equal_ones_leave_no_doubt() -> None:
    with pytest.raises(ValueError, match="two"):
        difference([1], [2, 3])
    found = difference([2, 2], [1, 1])
    assert (found.mean, found.low, found.high, found.is_real) == (1, 1, 1, True)
    assert not difference([2, 2], [2, 2]).is_real


@pytest.mark.parametrize(
    ("a", "b", "p"), [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 2 / 32), (1, 7, 2 * 9 / 256), (9, 3, 2 * 299 / 4096)]
)
def test_exact_binomial_p(a: int, b: int, p: float) -> None:
    assert binomial_p(a, b) == pytest.approx(p)
    assert binomial_p(b, a) == binomial_p(a, b)


def test_binomial_p_of_large_counts() -> None:
    """The normal approximation: z = (222 - 1) / sqrt(1402) = 5.902, p = 3.6e-9."""
    assert binomial_p(812, 590) == pytest.approx(3.6e-9, rel=0.1)
    assert 0 <= binomial_p(0, 3000) < 1e-300
