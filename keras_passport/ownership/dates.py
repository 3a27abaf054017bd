"""Which of two dates is the earlier: days and times, in any ISO form."""

import datetime

from keras_passport.errors import PassportError
from keras_passport.texts import shown


def span(text: str, name: str) -> tuple[datetime.datetime, datetime.datetime]:
    """The first and the last moment that a date or time may mean.

    Args:
        text: A day, of which no more is known, or a time; without a zone that
            of UTC.
        name: What it is, for the message.

    Raises:
        PassportError: If it is neither.
    """
    try:
        day = datetime.date.fromisoformat(text)
    except (TypeError, ValueError):
        day = None
    if day is not None:
        return tuple(
            datetime.datetime.combine(day, time, datetime.UTC)
            for time in (datetime.time.min, datetime.time.max)
        )
    try:
        moment = datetime.datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise PassportError(
            f"Expected {name} to be an ISO date or time, such as 2026-01-31. "
            f"Received: {shown(text, 80)!r}"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return moment, moment


def is_before(one: str, other: str) -> bool:
    """Whether one date or time is known to be before another.

    Args:
        one: As for `span`, and so is the other.
    """
    return span(one, "a date")[1] < span(other, "a date")[0]
