"""The paper's figures, drawn from plain numbers.

matplotlib is imported where it is used, and through its object-oriented
interface: nothing here touches pyplot, its current figure or its settings.
"""

import itertools
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from keras_passport import plotted
from keras_passport.files import replacing

_ORIGINAL = "#2ca02c"
_VALID = "#d62728"
_FAKE = "#1f77b4"
_INK = "#333333"
_FAINT = "#d9d9d9"
_PLAIN = "#7f7f7f"
# Neither the original's green nor the valid passport's red.
_CURVES = (_FAKE, "#ff7f0e", "#9467bd", "#8c564b", "#17becf", "#e377c2")

# Above so many valid accuracies, lines would hide one another.
_MOST_LINES = 10
_MOST_MARKS = 30


def plot_fakes(result: Mapping, path: str | os.PathLike) -> None:
    """Draws the accuracies under fake passports, as Figure 6 does.

    A histogram of the fakes in blue over the whole range of accuracies, with
    the original network's accuracy as a green line and the protected
    network's with its valid passport in red.

    Args:
        result: Mapping with accuracies in per cent:
            `"original_accuracy"`: number, or absent for no line;
            `"valid_accuracy"`: number, or a sequence of them if several
            networks were protected (up to ten are drawn as lines, more as a
            histogram);
            `"fake_accuracies"`: sequence of at least one number;
            `"title"`: optional string.
            Other entries are ignored, so `result.json` serves.
        path: The file to write; its suffix chooses the format (`.png`,
            `.pdf`, `.svg`). It is replaced if it exists, and only by a
            complete picture.

    Raises:
        ValueError: If an entry is missing or holds something else than
            accuracies, or if the path's suffix names no picture format.
        FileNotFoundError: If the path's folder does not exist.

    Example:

    >>> kp.plots.plot_fakes(
    ...     {
    ...         "original_accuracy": 92.7,
    ...         "valid_accuracy": 92.4,
    ...         "fake_accuracies": [9.8, 10.0, 10.4, 12.1],
    ...     },
    ...     "fakes.png",
    ... )
    """
    path = _picture_path(path)
    figure = _figure(7.6, 3.9)
    # Outside the axes, so that it hides no bar wherever the fakes lie.
    figure.legend(
        *_histogram(figure.add_subplot(), result),
        loc="outside lower center",
        ncols=3,
        fontsize=9.5,
        frameon=False,
        labelcolor=_INK,
        handlelength=1.4,
        columnspacing=1.8,
    )
    _write(figure, path)


def plot_histograms(result: Mapping, path: str | os.PathLike) -> None:
    """Draws several histograms of accuracies, as Figures 6 to 9 do.

    One panel for each passport function, kind of fake, network or attack.

    Args:
        result: Mapping with
            `"panels"`: sequence of at least one mapping as `plot_fakes` takes
            it; `"attack"` there is an optional word for the trials, which
            are fakes otherwise (`"RevA"` for Figure 7);
            `"title"`: optional string.
        path: The file to write, as in `plot_fakes`.

    Raises:
        ValueError: As `plot_fakes` does, or if there are no panels.
        FileNotFoundError: If the path's folder does not exist.

    Example:

    >>> panel = {
    ...     "original_accuracy": 92.7,
    ...     "valid_accuracy": 92.4,
    ...     "fake_accuracies": [66.8, 67.1],
    ...     "attack": "RevA",
    ... }
    >>> kp.plots.plot_histograms(
    ...     {"panels": [{**panel, "title": f} for f in ("V2", "V3")]},
    ...     "figure7.png",
    ... )
    """
    path = _picture_path(path)
    panels = plotted.sequence_of(result, "panels")
    columns = min(len(panels), 3 if len(panels) != 4 else 2)
    rows = -(-len(panels) // columns)
    figure = _figure(1.2 + 4.2 * columns, 0.4 + 3.7 * rows)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, panel in zip(grid, panels, strict=False):
        handles, labels = _histogram(axes, panel)
        axes.legend(
            handles,
            labels,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.17),
            fontsize=8.5,
            frameon=False,
            labelcolor=_INK,
            handlelength=1.4,
        )
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    if result.get("title"):
        title = plotted.literal(result["title"])
        figure.suptitle(title, color=_INK, fontsize=12)
    _write(figure, path)


def plot_curves(result: Mapping, path: str | os.PathLike) -> None:
    """Draws accuracies against an attacker's means, or noise (Figure 5).

    Args:
        result: Mapping with
            `"x_label"`: string, such as "Part of the training set (%)";
            `"log"`: optional, whether that axis is logarithmic, with a tick
            at every x;
            `"curves"`: mapping from a name to a mapping with `"x"`, a
            sequence of numbers, and `"accuracies"`, as long: a number in per
            cent, or a sequence of several trials', of which all are drawn as
            points and the means joined. A curve of a single x is a point.
            The name "From scratch" gets a broken grey line: it is no attack,
            but what an attacker's data are worth without the network;
            `"valid_accuracy"`, `"original_accuracy"`, `"chance"`: optional
            numbers in per cent, drawn as lines;
            `"title"`: optional string.
        path: The file to write, as in `plot_fakes`.

    Raises:
        ValueError: If an entry is missing or holds something else.
        FileNotFoundError: If the path's folder does not exist.

    Example:

    >>> kp.plots.plot_curves(
    ...     {
    ...         "x_label": "Elements with noise (%)",
    ...         "curves": {
    ...             "noise": {
    ...                 "x": [0, 50, 100],
    ...                 "accuracies": [[92.4], [41.0, 38.2], [10.1, 9.9]],
    ...             }
    ...         },
    ...         "valid_accuracy": 92.4,
    ...         "chance": 10.0,
    ...     },
    ...     "figure5.png",
    ... )
    """
    path = _picture_path(path)
    curves = {
        str(name): plotted.curve_of(
            plotted.mapping_of(result["curves"], name), name
        )
        for name in plotted.mapping_of(result, "curves")
    }
    if not curves:
        raise ValueError("Expected 'curves' of at least one name. Received: {}")
    figure = _figure(7.6, 4.2)
    axes = figure.add_subplot()
    _style(axes)
    for key, label, color, style in (
        ("original_accuracy", "Original", _ORIGINAL, "-"),
        ("valid_accuracy", "Valid passport", _VALID, "-"),
        ("chance", "Chance", "#999999", ":"),
    ):
        if result.get(key) is not None:
            [height] = plotted.accuracies_of(result, key)
            axes.axhline(
                height,
                color=color,
                linestyle=style,
                linewidth=1.6,
                label=f"{label}: {height:.1f} %",
                zorder=2,
            )
    colors = itertools.cycle(_CURVES)
    markers = itertools.cycle("osD^vPX*")
    for name, (x, trials) in curves.items():
        plain = name == "From scratch"
        color = _PLAIN if plain else next(colors)
        marker = "s" if plain else next(markers)
        axes.plot(
            x,
            [values.mean() for values in trials],
            color=color,
            linestyle="--" if plain else "-",
            marker=marker if len(x) <= _MOST_MARKS else None,
            markersize=5,
            linewidth=1.7,
            label=plotted.literal(name),
            clip_on=False,
            zorder=4,
        )
        for place, values in zip(x, trials, strict=True):
            if len(values) > 1:
                axes.plot(
                    [place] * len(values),
                    values,
                    color=color,
                    linestyle="none",
                    marker=marker,
                    markersize=3,
                    alpha=0.5,
                    clip_on=False,
                    zorder=3,
                )
    places = np.unique(np.concatenate([x for x, _ in curves.values()]))
    if result.get("log") and len(places) > 1:
        if places[0] <= 0:
            raise ValueError(
                "Expected every x above 0 on a logarithmic axis. "
                f"Received: {places[0]:g}"
            )
        axes.set_xscale("log")
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.set_xticks([], minor=True)
    axes.margins(x=0.03)
    axes.set_ylim(0, 100)
    axes.set_yticks(range(0, 101, 20))
    axes.set_xlabel(plotted.literal(result.get("x_label", "")))
    axes.set_ylabel("Test accuracy (%)")
    if result.get("title"):
        title = plotted.literal(result["title"])
        axes.set_title(title, color=_INK, fontsize=12, pad=10)
    figure.legend(
        loc="outside lower center",
        ncols=3,
        fontsize=9.5,
        frameon=False,
        labelcolor=_INK,
        handlelength=2.2,
        columnspacing=1.8,
    )
    _write(figure, path)


def plot_training(history: Mapping, path: str | os.PathLike) -> None:
    """Draws a training by epoch, as Figure 3 does.

    One panel each for the accuracies of the original and the protected
    network, for the weight change of one passport layer, and for its γ and β.
    A panel whose numbers are absent is left out.

    Args:
        history: Mapping with, per epoch from the first to the last,
            `"protected"`: mapping with `"accuracy"` and, if it was measured,
            `"val_accuracy"`, sequences of numbers in per cent;
            `"original"`: the same of the original network, or absent if it
            was trained elsewhere;
            `"layer"`: optional mapping with the layer's `"name"` and any of
            `"weight_change"`, `"gamma"` and `"beta"`, sequences of mean
            absolute values (of the kernel's change during the epoch, and of
            the hidden parameters at its end).
            Either network may be trained for more epochs than the other.
        path: The file to write, as in `plot_fakes`.

    Raises:
        ValueError: If an entry is missing or holds something else than
            numbers, or if the path's suffix names no picture format.
        FileNotFoundError: If the path's folder does not exist.

    Example:

    >>> kp.plots.plot_training(
    ...     {
    ...         "original": {"accuracy": [41.0, 58.2, 66.0]},
    ...         "protected": {"accuracy": [38.4, 57.5, 65.1]},
    ...         "layer": {"name": "conv2", "gamma": [0.2, 0.4, 0.5]},
    ...     },
    ...     "training.png",
    ... )
    """
    path = _picture_path(path)
    curves = []
    for network, color in (("original", _ORIGINAL), ("protected", _VALID)):
        if network == "original" and history.get(network) is None:
            continue
        metrics = plotted.mapping_of(history, network)
        for key, words, style in (
            ("accuracy", "training", (0, (2, 1.2))),
            ("val_accuracy", "test", "-"),
        ):
            if key == "val_accuracy" and metrics.get(key) is None:
                continue
            curves.append(
                (
                    plotted.accuracies_of(metrics, key, f"{network}.{key}"),
                    {
                        "label": f"{network.capitalize()}, {words}",
                        "color": color,
                        "linestyle": style,
                    },
                )
            )
    layer = (
        {}
        if history.get("layer") is None
        else plotted.mapping_of(history, "layer")
    )
    panels = [
        (title, plotted.numbers_of(layer, key, f"layer.{key}"))
        for key, title in (
            ("weight_change", "Mean |ΔW| per epoch"),
            ("gamma", "Mean |γ|"),
            ("beta", "Mean |β|"),
        )
        if layer.get(key) is not None
    ]

    figure = _figure(4.2 + 2.7 * len(panels), 3.2)
    if len(panels) == 3:
        rows = figure.subplots(1, 4, width_ratios=(1.45, 1, 1, 1))
    else:
        rows = figure.subplots(1, 1 + len(panels), squeeze=False)[0]
    for axes in rows:
        _style(axes)
        axes.set_xlabel("Epoch")
        axes.xaxis.get_major_locator().set_params(
            integer=True, min_n_ticks=1, nbins=6
        )
        axes.margins(x=0.03)
    for values, style in curves:
        _by_epoch(rows[0], values, **style)
    rows[0].set_title("Accuracy (%)", color=_INK, fontsize=11)
    rows[0].set_ylim(0, 100)
    rows[0].set_yticks(range(0, 101, 20))
    best = max(values.max() for values, _ in curves)
    rows[0].legend(
        fontsize=8.5,
        frameon=True,
        framealpha=0.85,
        edgecolor="none",
        labelcolor=_INK,
        handlelength=2.2,
        loc="lower right" if best > 40 else "upper left",
    )
    for axes, (title, values) in zip(rows[1:], panels, strict=True):
        _by_epoch(axes, values, color=_VALID)
        axes.set_title(title, color=_INK, fontsize=11)
        axes.set_ylim(0, 1.1 * values.max() if values.max() > 0 else 1)
        axes.yaxis.get_major_locator().set_params(nbins=6)
    if panels and layer.get("name"):
        title = f"Passport layer: {plotted.literal(layer['name'])}"
        figure.suptitle(title, color=_INK, fontsize=11)
    _write(figure, path)


def _histogram(axes, result):
    """One histogram with its lines; handles and labels of its legend."""
    valid = plotted.accuracies_of(result, "valid_accuracy")
    fakes = plotted.accuracies_of(result, "fake_accuracies")
    word = result.get("attack")
    _style(axes)
    bins = np.arange(101)
    handles, labels = [], []
    if "original_accuracy" in result:
        [original] = plotted.accuracies_of(result, "original_accuracy")
        handles = [
            axes.axvline(original, color=_ORIGINAL, linewidth=1.6, zorder=4)
        ]
        labels = [f"Original: {original:.1f} %"]
    counts, _, bars = axes.hist(
        fakes,
        bins,
        color=_FAKE,
        alpha=0.8,
        edgecolor="white",
        linewidth=0.4,
        # Before the lines, which are higher: trials may reach them.
        zorder=5,
    )
    top = counts.max()
    if len(valid) > _MOST_LINES:
        counts, _, valid_mark = axes.hist(
            valid, bins, color=_VALID, alpha=0.65, zorder=3
        )
        top = max(top, counts.max())
    else:
        # Wider than the original's line, which may lie on top of it.
        for accuracy in valid:
            valid_mark = axes.axvline(
                accuracy,
                color=_VALID,
                linewidth=4.5 if len(valid) == 1 else 2.5,
                alpha=0.6,
                zorder=3,
            )
    axes.set_xlim(0, 100)
    axes.set_xticks(range(0, 101, 10))
    axes.set_ylim(0, 1.08 * top)
    axes.yaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.set_xlabel("Test accuracy (%)")
    axes.set_ylabel(f"{'Trials' if word else 'Passports'} per 1 % of accuracy")
    if result.get("title"):
        title = plotted.literal(result["title"])
        axes.set_title(title, color=_INK, fontsize=12, pad=10)
    return [*handles, valid_mark, bars], [
        *labels,
        _label(valid, "Valid passport", "valid passports"),
        _label(fakes, word or "1 fake", word or "fakes", with_maximum=True),
    ]


def _by_epoch(axes, values, **style):
    axes.plot(
        np.arange(1, len(values) + 1),
        values,
        linewidth=1.7,
        # A single epoch makes no line.
        marker="o" if len(values) == 1 else None,
        clip_on=False,
        zorder=3,
        **style,
    )
    # Epochs are counted from 1: no tick at 0.
    axes.set_xlim(left=max(axes.get_xlim()[0], 0.5))


def _label(accuracies, one, many, with_maximum=False):
    if len(accuracies) == 1:
        return f"{one}: {accuracies[0]:.1f} %"
    label = (
        f"{len(accuracies):,} {many}: "
        f"{accuracies.mean():.1f} ± {accuracies.std(ddof=1):.1f} %"
    )
    if with_maximum:
        label += f", max {accuracies.max():.1f} %"
    return label


def _figure(width, height):
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Drawing figures needs matplotlib: "
            'pip install "keras-passport[plots]"'
        ) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.07, h_pad=0.07)
    return figure


def _style(axes):
    axes.grid(color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#888888")
    axes.tick_params(colors=_INK, labelsize=9)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)


def _picture_path(path):
    if pathlib.Path(path).suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ValueError(
            "Expected path to end in .png, .pdf or .svg. "
            f"Received: path={str(path)!r}"
        )
    return pathlib.Path(path)


def _write(figure, path):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=150)
