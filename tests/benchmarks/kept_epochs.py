"""What an attacker's choice of an epoch costs: the best, the kept, the last.

    python tests/benchmarks/kept_epochs.py --original=original.keras --order \
        --fraction=0.04 --epochs=100 --only="from_scratch exact,fresh ordered" \
        --out=rows.json --watched=kept.jsonl

Flags and rows are those of `exact_under_attack.py`. Of each training a line
is added to `--watched`: its row, and by the attacker's validation the best
epoch, the one that `kept_epoch` keeps, and the last, each with its number from
0, what it validated and what it has of the test pictures.
"""

import json

import exact_under_attack
import numpy as np
from absl import app, flags

from keras_passport.attacks import training

_WATCHED = flags.DEFINE_string("watched", "kept.jsonl", "File of the lines.")


class _Watched(training._Keep):
    """Keeps the weights of all epochs until it is known which are asked for."""

    test = None

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._epochs = []

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        self._epochs.append(self.model.get_weights())

    def on_train_end(self, logs=None):
        ends = list(zip(self._accuracies, self._losses, strict=True))
        standings = [
            training.standing({"val_accuracy": right, "val_loss": loss})
            for right, loss in ends
        ]
        chosen = {
            "best": standings.index(max(standings)),
            "kept": training.kept_epoch(
                *zip(*ends, strict=True), self._examples
            ),
            "last": len(ends) - 1,
        }
        reached = {n: self._reached(n) for n in set(chosen.values())}
        line = {
            "seed": flags.FLAGS.seed,
            "fraction": flags.FLAGS.fraction,
            "rate": flags.FLAGS.rate,
            "row": exact_under_attack.row,
            **{
                rule: {
                    "epoch": epoch,
                    "validated": round(float(ends[epoch][0]), 4),
                    "accuracy": reached[epoch],
                }
                for rule, epoch in chosen.items()
            },
        }
        with open(_WATCHED.value, "a") as file:
            file.write(json.dumps(line) + "\n")
        print(line, flush=True)
        super().on_train_end(logs)

    def _reached(self, epoch):
        self.model.set_weights(self._epochs[epoch])
        right, _ = training.answers(self.model, self.test)
        return round(float(np.mean(right)), 4)


class _Trainings(training._Trainings):
    def __init__(self, data, test, seed, progress):
        super().__init__(data, test, seed, progress)
        _Watched.test = test


if __name__ == "__main__":
    training._Keep, training._Trainings = _Watched, _Trainings
    app.run(exact_under_attack.main)
