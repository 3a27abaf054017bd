"""Fake passports tried in bulk, against the plain net on the same pictures.

    python tests/benchmarks/fakes.py --net=resnet18 --batch=250 --steps=10
    python tests/benchmarks/fakes.py --net=resnet20 --batch=500 --steps=20

A step runs over all pictures in batches. The plain net is the unlocked and
folded one, compiled: it has one set of hidden parameters. The judge of the
attacks gets other keys at each step; `drawn` are those of a new random
pattern, whose making is then part of the step, as in `fake_passports`.
"""

import itertools

import alternate
import nets
import numpy as np
import tensorflow as tf
from absl import app, flags

import keras_passport as kp
from keras_passport.attacks import fake
from keras_passport.passports.derivation import DEFAULT_KEY_SCALING

_PICTURES = flags.DEFINE_integer("pictures", 1000, "Pictures a passport.")


def main(_):
    base = nets.build()
    model = kp.protect(base)
    kp.bind(model, kp.Passport.random_pattern(model, seed=0))
    kp.calibrate(model)
    x = nets.pictures(_PICTURES.value)
    size = flags.FLAGS.batch
    kp.estimate_statistics(model, [x[:size]])
    plain = kp.unlock(model)
    forward = tf.function(lambda batch: plain(batch, training=False))
    batches = [tf.constant(x[at : at + size]) for at in range(0, len(x), size)]
    judge = fake.Judge(model, x, np.zeros(len(x), "int64"), size)
    draw = fake._maker(
        model, "random_pattern", None, None, DEFAULT_KEY_SCALING, seed=0
    )
    ready = itertools.cycle([draw(number) for number in range(5)])
    numbers = itertools.count(5)
    steps = {
        "unlocked, folded": lambda: [forward(b).numpy() for b in batches],
        "judge": lambda: judge(next(ready)),
        "judge, drawn": lambda: judge(draw(next(numbers))),
    }
    title = f"{nets.title('Fakes', base)}, {len(x)} pictures"
    results = alternate.show(title, alternate.medians(steps, warm_up=1))
    for name, result in results.items():
        result["pictures_a_second"] = len(x) / result["ms"] * 1e3
        print(
            f"{name}: {result['pictures_a_second']:.0f} pictures times "
            f"passports a second, {1 / result['ratio']:.3f} of the plain net's"
        )
    alternate.write({title: results})


if __name__ == "__main__":
    app.run(main)
