"""Tries all attacks on a finished run's network, and says what is left.

    python examples/evaluate_protection.py \
        --run_dir=runs/resnet-digits-random_image-V3 --budget=quick

Interrupted, the same command goes on: an attack that is finished is read, not
tried again. In the run's directory it writes

    attacks/          a record for each attack, and what it found of γ and β
    protection.json   the table, the worst case, the verdict
    report.html       the same with figures, one page that needs nothing else
    owner/noise.json  accuracies with noise on the passport (Figure 5)
    owner/hits.json   how many guesses of fakes were right: for the owner alone
"""

import sys

from absl import app, flags

from common import battery
from common.attacks import ATTACKS
from common.case import Owner
from common.errors import UserError, in_one_line
from common.evaluation import evaluate

_RUN_DIR = flags.DEFINE_string("run_dir", None, "A finished run of a trainer.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "As for the trainer.")
_BUDGET = flags.DEFINE_enum(
    "budget", "standard", list(battery.LEVELS), "How much attackers spend."
)
_ONLY = flags.DEFINE_list(
    "only", None, "Attacks to try, by name; all if not given."
)
_FRACTIONS = flags.DEFINE_list(
    "fractions",
    None,
    "Parts of the data that attackers have (0.1,1); as the budget says if not "
    "given.",
)
_SEED = flags.DEFINE_integer("seed", 0, "Of all draws of the attacks.", 0)
flags.mark_flag_as_required("run_dir")


def main(_):
    with in_one_line():
        if unknown := sorted(set(_ONLY.value or ()) - ATTACKS.keys()):
            raise UserError(
                f"Expected --only of {', '.join(ATTACKS)}. "
                f"Received: {', '.join(unknown)}"
            )
        fractions = _fractions(_FRACTIONS.value)
        owner = Owner(_RUN_DIR.value, _DATA_DIR.value)
        with owner.directory.locked():
            lines, complete = evaluate(
                owner, _BUDGET.value, _ONLY.value, _SEED.value, fractions
            )
        print("", *lines, sep="\n")
        print(f"The report is {owner.directory.report}")
        if not complete:
            sys.exit("Not all attacks came to a result; see above.")


def _fractions(given: list[str] | None) -> list[float] | None:
    try:
        fractions = given and [float(part) for part in given]
    except ValueError:
        fractions = [0.0]
    if fractions and not all(0 < part <= 1 for part in fractions):
        raise UserError(
            "Expected --fractions of numbers in (0, 1]. "
            f"Received: {','.join(given)}"
        )
    return fractions


if __name__ == "__main__":
    app.run(main)
