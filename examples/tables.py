"""The paper's tables and figures, its values beside ours.

    python examples/tables.py --dir=runs/tables --scale=digits

tries the program on the digits, in some minutes. A ResNet column of CIFAR-10,
then what else the tables have, on two cores:

    python examples/tables.py --dir=runs/tables --scale=cpu

All of it within a quarter of an hour of a GPU, in one call, which ends with
what there was time for:

    KERAS_BACKEND=jax python examples/tables.py --dir=runs/tables-gpu \
        --scale=gpu --minutes=14

Cells are run directories, `DIR/<network>-<dataset>/<function>-<kind>`, as the
trainers make them; they are made in turn, those that say most first. What is
finished is not run again: interrupted, the same command goes on, and a cell
loses an epoch at most. A run that another program has made serves as well
where it lies in (or is linked to from) a cell's place.

    python examples/tables.py --dir=runs/tables --collect=results

trains nothing: what cells reached becomes small JSON files without a secret,
and these the tables, the paper's values beside ours, and the figures.
"""

import pathlib
import sys
import time
import traceback

import keras
from absl import flags

import tables_cells
import tables_pages
import tables_results
from common import data
from common.distribution import Distribution, start
from common.errors import UserError, in_one_line, run_program
from common.rundir import RunDirectory, replacing, write_json
from keras_passport.errors import PassportError
from tables_runs import Runs

_DIR = flags.DEFINE_string("dir", None, "Where the cells are.", required=True)
_SCALE = flags.DEFINE_enum(
    "scale",
    "cpu",
    list(tables_cells.SCALES),
    "How large trainings and attacks are: "
    + "; ".join(f"{k}, {s.note}" for k, s in tables_cells.SCALES.items()),
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Where the pictures are, as for the trainers."
)
_NETWORKS = flags.DEFINE_list(
    "networks", list(tables_cells.NETWORKS), "Which networks."
)
_DATASETS = flags.DEFINE_list(
    "datasets", None, "Which data; the scale's if not given."
)
_FUNCTIONS = flags.DEFINE_list(
    "functions", list(tables_cells.FUNCTIONS), "Which passport functions."
)
_KINDS = flags.DEFINE_list(
    "kinds", list(tables_cells.KINDS), "Which kinds of passports and fakes."
)
_WAYS = flags.DEFINE_list(
    "ways",
    list(tables_cells.WAYS),
    "How networks are protected: as in the paper, or in a way of ours.",
)
_REPEATS = flags.DEFINE_integer(
    "repeats", None, "Networks of each cell; the scale's if not given.", 1
)
_MIXED_PRECISION = flags.DEFINE_enum(
    "mixed_precision",
    None,
    ["none", "float16", "bfloat16"],
    "Type that trained networks compute in; the scale's if not given.",
)
_COLLECT = flags.DEFINE_string(
    "collect",
    None,
    "A folder: nothing is trained; what cells of --dir reached goes there as "
    "JSON, and what lies there becomes the tables (README.md) and figures.",
)
_TUNED = flags.DEFINE_bool(
    "tuned",
    False,
    "Attackers of V3 with T3, and of what is ours, and their control try "
    "optimizers and learning rates as well: several times their cost.",
)
_MINUTES = flags.DEFINE_float(
    "minutes",
    None,
    "No cell is begun that might not be done by then, judged by the longest.",
    0,
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Only say which cells there are, in order."
)


def chosen_cells(scale: tables_cells.Scale) -> list[tables_cells.Cell]:
    """The cells that the flags name, in the order in which they are made."""
    for flag, names in (
        (_NETWORKS, tables_cells.NETWORKS),
        (_DATASETS, data.SOURCES),
        (_FUNCTIONS, tables_cells.FUNCTIONS),
        (_KINDS, tables_cells.KINDS),
        (_WAYS, tables_cells.WAYS),
    ):
        if unknown := [v for v in flag.value or () if v not in names]:
            raise UserError(
                f"Expected --{flag.name} of {', '.join(names)}. "
                f"Received: {', '.join(unknown)}"
            )
    cells = tables_cells.cells_of(
        scale,
        _NETWORKS.value,
        _DATASETS.value,
        _WAYS.value,
        _FUNCTIONS.value,
        _KINDS.value,
        _REPEATS.value,
    )
    if not cells:
        raise UserError(
            "Expected flags that some cell fits: the paper's tables show T2 "
            "for --networks=resnet, and ours are --functions=V3 --kinds=T3, "
            f"or T1 for {', '.join(tables_cells.SOLVED)}. Received: "
            + ", ".join(
                f"--{flag.name}={','.join(flag.value)}"
                for flag in (_NETWORKS, _WAYS, _FUNCTIONS, _KINDS)
            )
        )
    return cells


def make(cells: list[tables_cells.Cell], runs: Runs) -> list[str]:
    """Makes cells one after the other; returns the names of those that failed.

    One that fails, as by diverging, does not keep the others from being made.
    """
    failed = []
    began, longest = time.monotonic(), 0.0
    for number, cell in enumerate(cells):
        name = f"{cell.group}/{cell.name}"
        started = time.monotonic()
        ends = started - began + longest
        if _MINUTES.value is not None and ends > 60 * _MINUTES.value:
            print(f"\nNo time for {name} and what comes after it.")
            break
        print(f"\n== {name} ({number + 1} of {len(cells)})", flush=True)
        try:
            runs.make(cell)
        except (UserError, PassportError) as error:
            print(error, file=sys.stderr, flush=True)
            failed.append(name)
        except Exception:
            # A night's other cells are worth more than an early end.
            traceback.print_exc()
            failed.append(name)
        longest = max(longest, time.monotonic() - started)
    return failed


def device(cache: pathlib.Path) -> Distribution:
    """What trains: with JAX in calls of whole epochs, compiled once.

    Args:
        cache: where compiled functions go, so that one that another network
            has needed is not compiled again. They hold no keys.
    """
    if keras.backend.backend() != "jax":
        return Distribution()
    import jax

    for name, value in (
        ("jax_compilation_cache_dir", str(cache)),
        ("jax_persistent_cache_min_compile_time_secs", 0),
        ("jax_persistent_cache_min_entry_size_bytes", -1),
    ):
        jax.config.update(name, value)
    return start("on_device")


def collect(
    cells: list[tables_cells.Cell], runs: Runs, folder: pathlib.Path
) -> None:
    """Writes what cells reached, and tables and figures of all there is."""
    folder.mkdir(parents=True, exist_ok=True)
    tables_results.write(runs, cells, folder)
    results = tables_results.Results(folder)
    datasets = runs.scale.datasets
    page = folder / "README.md"
    with replacing(page) as temporary:
        temporary.write_text(tables_pages.pages(results, datasets), "utf-8")
    tables_pages.draw(results, datasets, folder)
    print(f"Tables of {len(results.all)} networks are in {page}")


def main(_):
    with in_one_line():
        scale = tables_cells.SCALES[_SCALE.value]
        if _MIXED_PRECISION.value:
            scale = scale.in_precision(_MIXED_PRECISION.value)
        cells = chosen_cells(scale)
        if _DRY_RUN.value:
            print(*(f"{c.group}/{c.name}" for c in cells), sep="\n")
            return
        folder = pathlib.Path(_DIR.value)
        if _COLLECT.value:
            collect(cells, Runs(folder, scale), pathlib.Path(_COLLECT.value))
            return
        with RunDirectory(folder).locked():
            runs = Runs(
                folder,
                scale,
                _DATA_DIR.value,
                device(folder / "compiled"),
                _TUNED.value,
            )
            runs.timeline.listen()
            failed = make(cells, runs)
            write_json(folder / "timeline.json", runs.timeline.summary())
            collect(cells, runs, folder / "results")
    if failed:
        sys.exit(f"Not made: {', '.join(failed)}")


if __name__ == "__main__":
    run_program(main)
