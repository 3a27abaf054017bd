"""Tries one attack on the protected network of a finished run.

    python examples/attack.py --run_dir=runs/resnet-digits-random_image-V3 \
        --attack=reverse_engineering --fraction=0.1 --epochs=50

A hundred thousand fakes, each on 200 pictures; interrupted, the same command
goes on:

    python examples/attack.py --run_dir=runs/resnet-digits-random_image-V3 \
        --attack=fake_random_image --num_fakes=100000 --examples=200

The attack gets what is published, and its own data. What it reached goes to
the run's folder `attacks`, a file for each attack and budget, and as a row of
the table to `attacks` in the run's `result.json`. Attackers may have the public
checkpoint that the network was made of, or another version of it:
`--attack=known_ancestor_reva --ancestor=public.keras`. For a run of
`protect_model.py` give its `--images`, and `--import`, once more.
"""

import dataclasses
import sys

from absl import flags

import keras_passport as kp
from common import finished
from common.errors import UserError, in_one_line, run_program, users_mistakes
from common.rundir import read_json, write_json

_ATTACK = flags.DEFINE_enum(
    "attack", None, list(kp.evaluation.ATTACKS), "What to try."
)
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
flags.DEFINE_bool(
    "tuned",
    None,
    "Try optimizers and learning rates, of the attack and its control alike.",
)
flags.mark_flag_as_required("attack")
flags.adopt_module_key_flags(finished)


def main(_):
    with in_one_line():
        budget = _budget(_ATTACK.value)
        run = finished.FinishedRun.of_flags()
        with run.directory.locked():
            tried = {_ATTACK.value: budget}
            attack = kp.evaluation.ATTACKS[_ATTACK.value]
            control = kp.evaluation.ATTACKS[attack.over]
            if set(control.uses) <= set(attack.uses):
                # What the same data are worth without the network.
                tried.setdefault(attack.over, budget)
            with users_mistakes():
                evaluation = kp.evaluation.evaluate(
                    **run.given,
                    attacks=tried,
                    directory=run.directory.path,
                    progress=sys.stdout.isatty(),
                )
            print(evaluation)
            rows = [
                row for row in evaluation.rows if row["attack"] == _ATTACK.value
            ]
            if not rows:
                raise UserError(f"{_ATTACK.value} came to no result.")
            [row] = rows
            result = read_json(run.directory.result)
            # Without one the trainer is not done yet: it would be taken for
            # its own.
            if result is not None:
                result.setdefault("attacks", {})[row["record"]] = row
                write_json(run.directory.result, result)
            print(f"The record is {run.directory.attacks / row['record']}.json")


def _budget(name: str) -> kp.evaluation.Budget:
    """What the flags allow this attack to spend."""
    fields = [field.name for field in dataclasses.fields(kp.evaluation.Budget)]
    given = {
        field: flags.FLAGS[field].value
        for field in fields
        if flags.FLAGS[field].value is not None
    }
    uses = kp.evaluation.ATTACKS[name].uses
    if useless := sorted(given.keys() - set(uses)):
        takes = f"--{', --'.join(uses)}" if uses else "nothing to spend"
        raise UserError(
            f"--attack={name} takes {takes}. Received: --{', --'.join(useless)}"
        )
    if given.get("fraction") == 0:
        raise UserError("Expected a --fraction in (0, 1]. Received: 0.0")
    return kp.evaluation.Budget(**given)


if __name__ == "__main__":
    run_program(main)
