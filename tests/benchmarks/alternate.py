"""Measuring things against each other: alternately, in one process."""

import json
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping

from absl import flags

_STEPS = flags.DEFINE_integer("steps", 30, "Runs of each.", lower_bound=1)
_CLOCK = flags.DEFINE_enum(
    "clock",
    "wall",
    ["wall", "processor"],
    "What is measured: time, or that of the processors in all threads of this "
    "process, which other programs hardly change.",
)
_JSON = flags.DEFINE_string("json", None, "File to write the figures to too.")


def times(
    steps: Mapping[str, Callable[[], object]], warm_up: int = 3
) -> dict[str, list[float]]:
    """Seconds that each step takes, run in turn `--steps` times.

    Whatever else the machine does meets them alike.
    """
    clock = {"wall": time.perf_counter, "processor": time.process_time}
    now = clock[_CLOCK.value]
    found = {name: [] for name in steps}
    for turn in range(warm_up + _STEPS.value):
        for name, step in steps.items():
            began = now()
            step()
            if turn >= warm_up:
                found[name].append(now() - began)
    return found


def medians(
    steps: Mapping[str, Callable[[], object]], warm_up: int = 3
) -> dict[str, float]:
    """Median seconds of each step; see `times`."""
    return {
        name: statistics.median(some)
        for name, some in times(steps, warm_up).items()
    }


def show(title: str, seconds: Mapping[str, float]) -> dict:
    """Prints a table of medians and of ratios to the first; returns both."""
    first = next(iter(seconds.values()))
    print(f"\n{title}, {_CLOCK.value} time\n{'':32}{'ms':>10}{'ratio':>8}")
    for name, value in seconds.items():
        print(f"{name:32}{value * 1e3:10.2f}{value / first:8.3f}")
    return {
        name: {"ms": value * 1e3, "ratio": value / first}
        for name, value in seconds.items()
    }


def write(results: Mapping) -> None:
    """Writes results to `--json`, if it is given."""
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(results, indent=2))
