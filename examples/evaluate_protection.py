"""Tries all attacks on a finished run's network, and says what is left.

    python examples/evaluate_protection.py \
        --run_dir=runs/resnet-digits-random_image-V3 --budget=quick

Interrupted, the same command goes on: an attack that is finished is read, not
tried again. In the run's directory it writes

    attacks/           a record for each attack, and what it found of γ and β
    protection.json    the table, the worst case, the verdict
    report.html        the same with figures, one page that needs nothing else
    owner/noise.json   accuracies with noise on the passport (Figure 5)
    owner/changes.json what changes of the network leave to its owner
    owner/hits.json    how many guesses of fakes were right

What is in `owner` is for the owner alone. If the network was made of one that
others have, such as a public checkpoint, or if there is another version of it,
name that: `--ancestor=public.keras`. Attackers then have it, too. For a run of
`protect_model.py` give its `--images`, and `--import`, once more.
"""

import sys

from absl import flags

import keras_passport as kp
from common import finished
from common.errors import UserError, in_one_line, run_program, users_mistakes

_BUDGET = flags.DEFINE_enum(
    "budget",
    "standard",
    list(kp.evaluation.LEVELS),
    "How much attackers spend.",
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
flags.adopt_module_key_flags(finished)


def main(_):
    with in_one_line():
        run = finished.FinishedRun.of_flags()
        with run.directory.locked():
            with users_mistakes():
                evaluation = kp.evaluation.evaluate(
                    **run.given,
                    budget=_BUDGET.value,
                    attacks=_ONLY.value,
                    fractions=_numbers(_FRACTIONS.value),
                    seed=_SEED.value,
                    directory=run.directory.path,
                    tell=lambda line: print(line, flush=True),
                    progress=sys.stdout.isatty(),
                )
            evaluation.save(run.directory.protection)
            evaluation.save_page(run.directory.report)
        print("", evaluation, sep="\n")
        print(f"The report is {run.directory.report}")
        if not evaluation.complete:
            sys.exit("Not all attacks came to a result; see above.")


def _numbers(given: list[str] | None) -> list[float] | None:
    try:
        return given and [float(part) for part in given]
    except ValueError as error:
        raise UserError(
            "Expected --fractions of numbers in (0, 1]. "
            f"Received: {','.join(given)}"
        ) from error


if __name__ == "__main__":
    run_program(main)
