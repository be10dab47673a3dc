from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sw.frontends.scales import can_tie, dyadic


@given(m=st.integers(-65535, 65535), s=st.integers(0, 40))
@settings(max_examples=200, derandomize=True, deadline=None)
def test_ratios_of_the_right_form_are_exact(m: int, s: int) -> None:
    ratio = Fraction(m, 1 << s)
    if abs(ratio) >= 1 << 15:
        with pytest.raises(ValueError, match="too large"):
            dyadic(ratio)
        return
    multiplier, shift, exact = dyadic(ratio)
    assert exact and Fraction(multiplier, 1 << shift) == ratio
    assert abs(multiplier) < 1 << 16 and 1 <= shift <= 47


@given(st.fractions(min_value=Fraction(1, 10**6), max_value=30000))
@settings(max_examples=200, derandomize=True, deadline=None)
def test_other_ratios_are_close(ratio: Fraction) -> None:
    multiplier, shift, _ = dyadic(ratio)
    assert abs(Fraction(multiplier, 1 << shift) - ratio) <= ratio / (1 << 15)


@given(m=st.integers(1, 63), s=st.integers(1, 9), reach=st.integers(0, 300), high=st.integers(1, 40))
@settings(max_examples=300, derandomize=True, deadline=None)
def test_can_tie_never_misses_a_tie(m: int, s: int, reach: int, high: int) -> None:
    doubled = np.arange(-reach, reach + 1) * m * 2
    half_way = (doubled % (1 << s) == 0) & (doubled // (1 << s) % 2 != 0)
    inside = np.abs(doubled / (1 << s + 1)) <= high
    if (half_way & inside).any():
        assert can_tie([m], [s], -high, high, reach)


def test_normalized_multipliers_cannot_tie_on_eight_bits() -> None:
    assert not can_tie([65535, 32769], [20, 22], -128, 127, 1 << 24)
    assert can_tie([1], [3], -128, 127, 100)
