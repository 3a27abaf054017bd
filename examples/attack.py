"""Tries one attack on the protected network of a finished run.

    python examples/attack.py --run_dir=runs/resnet-digits-random_image-V3 \
        --attack=reverse_engineering --fraction=0.1 --epochs=50

A hundred thousand fakes, each on 200 pictures; interrupted, the same command
goes on:

    python examples/attack.py --run_dir=runs/resnet-digits-random_image-V3 \
        --attack=fake_random_image --num_fakes=100000 --examples=200

The attack gets what is published, and its own data. What it reached goes to
the run's folder `attacks`, a file for each attack and budget, and as a row of
the table to `attacks` in the run's `result.json`.
"""

from absl import app, flags

from common import battery, verdict
from common.attacks import ATTACKS, Budget
from common.case import Owner
from common.errors import UserError, in_one_line
from common.rundir import RunDirectory, read_json, write_json

_RUN_DIR = flags.DEFINE_string("run_dir", None, "A finished run of a trainer.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "As for the trainer.")
_ATTACK = flags.DEFINE_enum("attack", None, list(ATTACKS), "What to try.")
# What the attack may spend; `Budget` has the values of what is left out.
flags.DEFINE_integer("num_fakes", None, "Fake passports to try.", 1)
flags.DEFINE_integer("examples", None, "Pictures that each is tried on.", 1)
flags.DEFINE_enum(
    "source",
    None,
    ["defender", "disjoint"],
    "The attacker's data: the defender's training set, or other pictures.",
)
flags.DEFINE_float("fraction", None, "Part of them, in (0, 1].", 0, 1)
flags.DEFINE_integer("epochs", None, "Passes over them.", 1)
flags.DEFINE_integer(
    "trials",
    None,
    "Trainings, of which one is chosen; 40 at least if tuned.",
    1,
)
flags.DEFINE_integer("seed", None, "Of all draws of the attack.", 0)
flags.mark_flags_as_required(["run_dir", "attack"])


def main(_):
    with in_one_line():
        name = _ATTACK.value
        given = {
            field: flags.FLAGS[field].value
            for field in Budget.__dataclass_fields__
            if flags.FLAGS[field].value is not None
        }
        uses = ATTACKS[name].uses
        if useless := sorted(given.keys() - set(uses)):
            takes = f"--{', --'.join(uses)}" if uses else "nothing to spend"
            raise UserError(
                f"--attack={name} takes {takes}. "
                f"Received: --{', --'.join(useless)}"
            )
        if given.get("fraction") == 0:
            raise UserError("Expected a --fraction in (0, 1]. Received: 0.0")
        budget = Budget(**given)
        owner = Owner(_RUN_DIR.value, _DATA_DIR.value)
        numbers = owner.reference_numbers()
        folder = owner.directory.attacks
        with owner.directory.locked():
            record = battery.perform(owner.case, name, budget, folder)
            count = budget.examples if "examples" in uses else None
            labels = owner.case.judges(count)[1]
            rows = [verdict.row(record, numbers, labels)]
            print(*verdict.table(rows, numbers), sep="\n")
            print(*verdict.verdict(rows, numbers, []), sep="\n")
            path = battery.record_path(folder, owner.case, name, budget)
            _add_to_result(owner.directory, path.stem, rows[0])
            print(f"The record is {path}")


def _add_to_result(directory: RunDirectory, name: str, row: dict) -> None:
    result = read_json(directory.result)
    # Without one the trainer is not done yet: it would be taken for its own.
    if result is not None:
        result.setdefault("attacks", {})[name] = row
        write_json(directory.result, result)


if __name__ == "__main__":
    app.run(main)
