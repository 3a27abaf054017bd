"""Which claim is the earlier, in whatever form dates are written."""

import pytest

import keras_passport as kp
from keras_passport.ownership import dates

# In each, the first is known to be earlier.
EARLIER = [
    ("2026-01-31", "2026-02-01"),
    ("20250601", "2025-12-31"),
    ("2025-06-01", "20251231"),
    ("2026-W05-6", "2026-02-01"),
    ("2026-01-31", "2026-02-01T00:00"),
    ("2026-01-31T09:00", "2026-01-31T09:00:01"),
    ("2026-01-31T09:00", "2026-01-31T09:30Z"),
    ("2026-01-31T23:30+14:00", "2026-01-31T10:00"),
    ("2026-01-31T23:30+14:00", "2026-01-31T09:31Z"),
    ("2026-02-01T00:30+01:00", "2026-02-01"),
    ("0001-01-01T00:00+14:00", "0001-01-02"),
    ("9999-12-30", "9999-12-31T23:59-12:00"),
]
# Of these nothing is known.
ALIKE = [
    ("2026-01-31", "2026-01-31"),
    ("2026-01-31", "20260131"),
    ("2026-01-31", "2026-01-31T23:00"),
    ("2026-01-31T10:00", "2026-01-31T11:00+01:00"),
    ("2026-01-31T00:30+01:00", "2026-01-30"),
]


@pytest.mark.parametrize("one, other", EARLIER)
def test_is_before(one, other):
    assert dates.is_before(one, other) and not dates.is_before(other, one)


@pytest.mark.parametrize("one, other", ALIKE)
def test_are_alike(one, other):
    assert not dates.is_before(one, other)
    assert not dates.is_before(other, one)


@pytest.mark.parametrize("text", ["", "soon", "2026", "31.1.2026", 20260131])
def test_is_a_date(text):
    with pytest.raises(kp.PassportError, match="Expected dated to be an ISO"):
        dates.span(text, "dated")
