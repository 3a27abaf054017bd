"""The paper's tables and figures, its values beside ours.

    python examples/tables.py --dir=runs/tables --scale=digits

tries the program on the digits, in some minutes. A ResNet column of CIFAR-10,
then what else the tables have, on two cores:

    python examples/tables.py --dir=runs/tables --scale=cpu

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
import traceback

from absl import app, flags

import tables_cells
import tables_pages
import tables_results
from common import data
from common.errors import UserError, in_one_line
from common.rundir import RunDirectory, replacing
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
_COLLECT = flags.DEFINE_string(
    "collect",
    None,
    "A folder: nothing is trained; what cells of --dir reached goes there as "
    "JSON, and what lies there becomes the tables (README.md) and figures.",
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
    return tables_cells.cells_of(
        scale,
        _NETWORKS.value,
        _DATASETS.value,
        _WAYS.value,
        _FUNCTIONS.value,
        _KINDS.value,
        _REPEATS.value,
    )


def make(cells: list[tables_cells.Cell], runs: Runs) -> list[str]:
    """Makes cells one after the other; returns the names of those that failed.

    One that fails, as by diverging, does not keep the others from being made.
    """
    failed = []
    for number, cell in enumerate(cells):
        name = f"{cell.group}/{cell.name}"
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
    return failed


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
        temporary.write_text(tables_pages.pages(results, datasets))
    tables_pages.draw(results, datasets, folder)
    print(f"Tables of {len(results.all)} networks are in {page}")


def main(_):
    with in_one_line():
        scale = tables_cells.SCALES[_SCALE.value]
        cells = chosen_cells(scale)
        if _DRY_RUN.value:
            print(*(f"{c.group}/{c.name}" for c in cells), sep="\n")
            return
        folder = pathlib.Path(_DIR.value)
        if _COLLECT.value:
            collect(cells, Runs(folder, scale), pathlib.Path(_COLLECT.value))
            return
        with RunDirectory(folder).locked():
            runs = Runs(folder, scale, _DATA_DIR.value)
            failed = make(cells, runs)
            collect(cells, runs, folder / "results")
    if failed:
        sys.exit(f"Not made: {', '.join(failed)}")


if __name__ == "__main__":
    app.run(main)
