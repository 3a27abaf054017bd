"""10,000 damaged and hostile files: refused, without a crash or a hang."""

import json
import subprocess
import sys

import pytest

from support import damaged_files
from support.processes import REPOSITORY

TIMEOUT = 300  # seconds for all files; it takes about 15
MOST_MEMORY = 100_000_000  # bytes
MOST_TIME = 5  # seconds of computing for one file

# Kinds of hostile files that change nothing, or only numbers whose hashes
# fit: a loaded passport is right, or one that its writer could have made.
HARMLESS = {
    *("metadata", "copied_metadata", "form: timed"),  # bytes without meaning
    *("resealed_flipped_bits", "resealed_overwritten", "resealed_moved"),
    *("header_values", "geometries", "values", "large_keys"),
}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What `damaged_files` found, in a process without Keras."""
    folder = tmp_path_factory.mktemp("fuzz")
    finished = subprocess.run(
        [sys.executable, damaged_files.__file__, folder],
        env={"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert finished.returncode == 0, (
        f"The process exited with {finished.returncode}; the last file is "
        f"{folder / 'fuzzed.h5'}.\n{finished.stderr[-6000:]}"
    )
    return json.loads(finished.stdout)


def test_no_file_makes_anything_but_a_passport_error(report):
    assert report["failures"] == []
    assert report["imported"] == []
    total = sum(sum(kind.values()) for kind in report["kinds"].values())
    assert total == 10_000


def test_no_file_takes_much_memory_or_time(report):
    assert report["growth"] <= MOST_MEMORY
    assert report["slowest"] <= MOST_TIME


def test_every_damaged_file_is_refused(report):
    kinds = {
        make.__name__: count for make, count in damaged_files.DAMAGED.items()
    }
    assert sum(kinds.values()) == 6_000
    for name, count in kinds.items():
        assert report["kinds"][name] == {"refused": count}, name


def test_hostile_files_are_refused_by_their_structure(report):
    kinds = {
        make.__name__: count for make, count in damaged_files.SEALED.items()
    }
    assert sum(kinds.values()) == 4_000
    for name, count in kinds.items():
        found = report["kinds"][name]
        if name not in HARMLESS:
            assert found == {"refused": count}, name
        if name.startswith(("metadata", "copied", "form", "resealed")):
            # The header's few bytes of text aside, nothing else can fit.
            assert found.get("another passport", 0) <= 0.01 * count, name
    # The files reach the content: some are right, or almost so.
    loaded = sum(
        count
        for kind in report["kinds"].values()
        for outcome, count in kind.items()
        if outcome != "refused"
    )
    assert loaded > 100
