"""What filters tell of the signs of γ: a trace that trained kernels have."""

import numpy as np
from scipy import stats

from keras_passport.leaks.report import Trace
from keras_passport.leaks.secrets import layers_of

# Filters to learn from, at most; layers with fewer channels tell nothing.
_FILTERS = 4096
_FEWEST = 8
_CHANCE = 0.01


def traces_of(passport, models) -> list[Trace]:
    """How many signs of each layer's γ its filters tell.

    By a regression of the signs of the other layers' γ on their filters: what
    attackers have of networks of their own (`attacks.orientation`) can't be
    much more like this one than it is to itself.

    Args:
        passport: `Passport`.
        models: Protected models that it fits.
    """
    if not passport.function.hides_gamma:
        return []
    traces = {}
    for model in models:
        known = _known(passport, model)
        for path, (statistics, signs) in known.items():
            others = [
                s * g[:, None] for p, (s, g) in known.items() if p != path
            ]
            if len(signs) >= _FEWEST and others:
                trace = _trace(path, statistics, signs, np.concatenate(others))
                traces[path] = max(
                    trace, traces.get(path, trace), key=lambda one: one.cosine
                )
    return list(traces.values())


def _known(passport, model) -> dict:
    """Odd statistics of each layer's filters, and the signs of its γ."""
    from keras_passport.layers.filters import odd_statistics

    rows = passport.fitted(model).rows()
    known = {}
    for (path, layer), row in zip(
        layers_of([model]), rows.values(), strict=True
    ):
        gamma, _ = layer.hidden_parameters(row)
        known[path] = odd_statistics(layer.adapter, layer.layer), np.sign(gamma)
    return known


def _trace(path, statistics, signs, others):
    from keras_passport.layers.filters import SignRegression

    if len(others) > _FILTERS:
        chosen = np.random.default_rng(0).choice(len(others), _FILTERS, False)
        others = others[chosen]
    predicted = SignRegression.fit(others).chances(statistics) > 0.5
    count = len(signs)
    return Trace(
        path,
        "gamma",
        "signs, by the filters",
        float(np.mean(predicted == (signs > 0))),
        float(stats.binom.isf(_CHANCE, count, 0.5) / count),
    )
