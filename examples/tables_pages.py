"""The paper's tables in its layout, as Markdown, and its figures."""

import pathlib
from collections.abc import Sequence

import numpy as np

import tables_paper as paper
from keras_passport import plots
from tables_cells import COURSES, EXACT, FUNCTIONS, SOLVED
from tables_results import Repeats, Results

REVA = "reverse_engineering"
_NOT_RUN = "not run"
_KINDS = ("T1", "T2", "T3")
# What Tables 2 to 4 have rows of: functions and networks.
_TABLE2 = [
    ("V1", "resnet"),
    ("V2", "resnet"),
    ("V3", "resnet"),
    ("V3", "vgg"),
    ("V3", "alexnet"),
]
_TABLE3 = [("V3", network) for network in paper.NETWORKS]
_TABLE4 = [(f, network) for f in FUNCTIONS for network in paper.NETWORKS]
_OURS = {
    "paper": "the paper's keys",
    "hardened": "hardened, the default",
    "exact": "exact, rows in their own order",
    "exact-order": "exact, the default",
}
# Networks of Figure 3.
_COURSES = {
    "paper": "passport from scratch",
    "pretrained": "pretrained kernels",
    "calibrated": "pretrained and calibrated",
    "exact-tuned": "exact and tuned",
}


def pages(results: Results, datasets: Sequence[str]) -> str:
    """All tables as one page of Markdown.

    Args:
        results: what there is.
        datasets: of which; the paper's if they are other data, to try the
            program.
    """
    first = datasets[0]
    parts = [
        "# The paper's tables, its values beside ours",
        "Fan, Ng, Chan: Digital Passport. In each cell the paper's value, then "
        "ours; test accuracies, S and I in per cent. After a mean of ours its "
        "standard deviation over fakes and over repeats, where there are "
        f'several. "{_NOT_RUN}" is what nobody has run here yet, "-" what the '
        "paper does not have. Made by `examples/tables.py --collect`.",
        _scaled_down(results),
        "## Table 2: fakes of the passport's kind, CIFAR10",
        _fakes_table(results, first, _TABLE2, _KINDS, paper.TABLE2),
        "## Table 3: fakes of the passport's kind, CIFAR100",
        _fakes_table(results, "cifar100", _TABLE3, ("T3",), paper.TABLE3),
        "## Table 4: RevA, CIFAR10",
        _reva_table(results, first),
        "## RevA with less data, and what the data alone are worth",
        _less_data(results, first),
        "## Ours beside the paper's, under the same attackers",
        "A is the advantage of RevA over training from scratch with the same "
        "labels, with its 95 % interval: above 0 the network was worth "
        "stealing. Exactly protected networks meet fakes of random patterns.",
        _ours(results, first),
        results.notes,
        "## Figures",
        _captions(results, first),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _scaled_down(results: Results) -> str:
    """How large our networks are beside the paper's."""
    sizes = {}
    for one in results.all:
        if one["cell"]["way"] in EXACT or one["cell"]["way"] in COURSES:
            continue
        fakes = one["fakes"]
        text = (
            f"{one['network']} ({one['parameters']:,} parameters), "
            f"{one['epochs']} epochs, {len(fakes['accuracies']):,} fakes on "
            f"{fakes['examples']:,} pictures"
        )
        if one.get("mixed_precision", "none") != "none":
            text += f", in {one['mixed_precision']}"
        sizes[text] = sizes.get(text, 0) + 1
    if not sizes:
        return ""
    lines = [
        f"* {text}: {n} network{'s' if n > 1 else ''}"
        for text, n in sorted(sizes.items())
    ]
    return "\n".join(
        [
            "The paper trained ResNet-18, VGG and AlexNet of width 64 for "
            f"{paper.EPOCHS} epochs, {paper.REPEATS} of each cell, and tried "
            f"{paper.NUM_FAKES:,} fakes on each. Ours:",
            "",
            *lines,
        ]
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _heading(dataset: str, network: str, repeats: Sequence[Repeats]) -> str:
    """A row's network with its original's accuracy, the paper's and ours."""
    # Other data, such as the digits, stand in for CIFAR10.
    data = dataset if dataset in paper.ORIGINALS else "cifar10"
    theirs = paper.ORIGINALS[data][network]
    ours = [value for some in repeats for value in some.of("original")]
    shown = f"{np.mean(ours):.2f}" if ours else _NOT_RUN
    return f"{paper.NETWORKS[network]} ({_number(theirs)} / {shown})"


def _number(value, sign: str = "") -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return f"{value[0]:{sign}.2f} ({value[1]:.2f})"
    return f"{value:{sign}.2f}"


def _both(theirs, ours: str, sign: str = "") -> str:
    return f"{_number(theirs, sign)} / {ours}"


def _spread(mean: float, *parts: np.ndarray, sign: str = "") -> str:
    """A mean, and the deviations of what it may vary over."""
    deviations = [f"{np.std(p, ddof=1):.2f}" for p in parts if len(p) > 1]
    shown = f"{mean:{sign}.2f}"
    return f"{shown} ({'; '.join(deviations)})" if deviations else shown


def _strength(repeats: Repeats) -> str:
    """S against fakes; deviations over fakes and over repeats."""
    strengths = repeats.strengths
    if not strengths:
        return _NOT_RUN
    means = np.array([values.mean() for values in strengths])
    within = np.concatenate([values - values.mean() for values in strengths])
    return _spread(means.mean(), within, means)


def _inconsistency(repeats: Repeats) -> str:
    if not len(repeats):
        return _NOT_RUN
    values = repeats.inconsistencies
    return _spread(values.mean(), values, sign="+")


def _fakes_table(results, dataset, rows, kinds, theirs) -> str:
    lines = []
    for function, network in rows:
        found = [
            results.repeats(dataset, network, "paper", function, kind)
            for kind in kinds
        ]
        known = [
            theirs.get((function, network, k), (None, None)) for k in kinds
        ]
        lines.append(
            [
                function,
                _heading(dataset, network, found),
                *(
                    _both(value[0], _strength(some))
                    for value, some in zip(known, found, strict=True)
                ),
                *(
                    _both(value[1], _inconsistency(some), "+")
                    for value, some in zip(known, found, strict=True)
                ),
                ", ".join(str(len(some)) for some in found),
            ]
        )
    head = [f"{what} {kind}" for what in ("S", "I") for kind in kinds]
    return _table(["", "network", *head, "our repeats"], lines)


def _reva_table(results, dataset) -> str:
    kinds = ("T1", "T3")
    lines = []
    for function, network in _TABLE4:
        found = [
            results.repeats(dataset, network, "paper", function, kind)
            for kind in kinds
        ]
        theirs = [paper.TABLE4[function, network, kind] for kind in kinds]
        lines.append(
            [
                function,
                _heading(dataset, network, found),
                *(
                    _both(value[0], _reva_strength(some))
                    for value, some in zip(theirs, found, strict=True)
                ),
                *(
                    _both(value[1], _inconsistency(some), "+")
                    for value, some in zip(theirs, found, strict=True)
                ),
                ", ".join(str(len(some.attacked(REVA))) for some in found),
            ]
        )
    head = [f"{what} {kind}" for what in ("S", "I") for kind in kinds]
    return "\n\n".join(
        [
            "The paper's attackers have the whole training set; ours have the "
            "part in brackets.",
            _table(["", "network", *head, "our repeats"], lines),
        ]
    )


def _reva_strength(repeats: Repeats) -> str:
    pairs = repeats.attacked(REVA)
    if not pairs:
        return _NOT_RUN
    strengths = np.array([one["valid"] - row["accuracy"] for one, row in pairs])
    part = f"{100 * max(row['fraction'] for _, row in pairs):g} %"
    return f"{_spread(strengths.mean(), strengths)} [{part}]"


def _less_data(results, dataset) -> str:
    rows = []
    for function, network in _TABLE4:
        for kind in _KINDS:
            found = results.repeats(dataset, network, "paper", function, kind)
            rows += [
                [
                    f"{function}/{kind}",
                    paper.NETWORKS[network],
                    *_with_labels(found, *data),
                ]
                for data in _data(found)
            ]
    if not rows:
        return _NOT_RUN
    head = ["", "network", "part of the data", "RevA", "S", "from scratch"]
    return _table([*head, "A", "repeats"], rows)


def _data(found: Repeats) -> list[tuple[float, bool]]:
    """Which parts of the data RevA had, and whether it was tuned."""
    return sorted(
        {
            (row["fraction"], row["tuned"])
            for one in found.found
            for row in one["attacks"]
            if row["attack"] == REVA
        }
    )


def _with_labels(found: Repeats, fraction: float, tuned: bool) -> list[str]:
    """Columns of RevA with a part of the data, and of its control."""
    pairs = found.attacked(REVA, fraction, tuned)
    rows = [row for _, row in pairs]
    reached = np.array([row["accuracy"] for row in rows])
    strengths = np.array([one["valid"] - row["accuracy"] for one, row in pairs])
    controls = [row["scratch"] for row in rows if "scratch" in row]
    return [
        f"{100 * fraction:g} %{', tuned' if tuned else ''}",
        _spread(reached.mean(), reached),
        _spread(strengths.mean(), strengths),
        _spread(np.mean(controls), np.array(controls))
        if controls
        else _NOT_RUN,
        _advantage(rows),
        str(len(pairs)),
    ]


def _advantage(rows: list[dict]) -> str:
    gained = [row for row in rows if "advantage" in row]
    if not gained:
        return _NOT_RUN
    values = np.array([row["advantage"] for row in gained])
    if len(gained) > 1:
        return _spread(values.mean(), values, sign="+")
    low, high = gained[0]["interval"]
    return f"{values[0]:+.2f} ({low:+.1f} to {high:+.1f})"


def _ours(results, dataset) -> str:
    rows = []
    for network, title in paper.NETWORKS.items():
        for way, words in _OURS.items():
            kind = "T1" if way in SOLVED else "T3"
            found = results.repeats(dataset, network, way, "V3", kind)
            row = [title, words]
            if not len(found):
                rows.append([*row, *[_NOT_RUN] * 9])
                continue
            fakes = found.fakes
            row += [
                f"{found.of('original').mean():.2f}",
                f"{found.of('valid').mean():.2f}",
                _inconsistency(found),
                f"{np.max(fakes):.2f}" if fakes else _NOT_RUN,
                _strength(found),
            ]
            tried = [_with_labels(found, *data) for data in _data(found)]
            rows += [
                [*row, *(columns[n] for n in (0, 1, 3, 4))] for columns in tried
            ] or [[*row, *[_NOT_RUN] * 4]]
    head = ["network", "protection, V3", "original", "valid", "I"]
    head += ["best fake", "S, fakes", "part of the data", "RevA"]
    return _table([*head, "from scratch", "A"], rows)


def _captions(results, dataset) -> str:
    lines = []
    for number, text in paper.FIGURES.items():
        names = sorted(figures(results, dataset).get(number, {}))
        shown = ", ".join(f"[{name}]({name})" for name in names)
        lines.append(f"* Figure {number}. {text} Ours: {shown or _NOT_RUN}.")
    return "\n".join(lines)


def draw(results: Results, datasets: Sequence[str], folder) -> None:
    """Draws the figures that there is something for."""
    for drawn in figures(results, datasets[0]).values():
        for name, (plot, content) in drawn.items():
            plot(content, pathlib.Path(folder) / name)


def figures(results: Results, dataset: str) -> dict[int, dict[str, tuple]]:
    """By number and file name: a function of `plots`, and what it draws."""
    drawn: dict[int, dict] = {}
    drawn[3] = _courses(results, dataset)
    drawn[5] = _noise(results, dataset)
    for number, data, panels in (
        (
            6,
            dataset,
            [("resnet", f, kind) for f in FUNCTIONS for kind in _KINDS],
        ),
        (8, dataset, [(n, "V3", "T3") for n in ("vgg", "alexnet")]),
        (9, "cifar100", [(n, "V3", "T3") for n in ("vgg", "alexnet")]),
    ):
        drawn[number] = _histograms(
            f"figure{number}.png",
            [
                _panel(results, data, network, function, kind)
                for network, function, kind in panels
            ],
        )
    drawn[7] = _histograms(
        "figure7.png",
        [
            _panel(results, dataset, "resnet", function, "T3", reva=True)
            for function in FUNCTIONS
        ],
    )
    return drawn


def _histograms(name, panels) -> dict:
    panels = [panel for panel in panels if panel]
    return {name: (plots.plot_histograms, {"panels": panels})} if panels else {}


def _panel(results, dataset, network, function, kind, reva=False):
    """One histogram, or None if there is nothing to show."""
    found = results.repeats(dataset, network, "paper", function, kind)
    trials = found.fakes
    if reva:
        trials = [row["accuracy"] for _, row in found.attacked(REVA)]
    if not trials:
        return None
    return {
        "title": f"{paper.NETWORKS[network]}, {function}/{kind}",
        "original_accuracy": float(found.of("original").mean()),
        "valid_accuracy": found.of("valid").tolist(),
        "fake_accuracies": trials,
        **({"attack": "RevA"} if reva else {}),
    }


def _courses(results, dataset) -> dict:
    """Test accuracies side by side, and one layer of each network."""
    drawn, curves, originals = {}, {}, []
    for way in ("paper", *COURSES):
        kind = "T1" if way in SOLVED else "T3"
        for one in results.repeats(dataset, "resnet", way, "V3", kind).found:
            if "course" not in one or way in curves:
                continue
            course, name = one["course"], _COURSES[way]
            accuracies = {
                key: [100 * value for value in course[key]]
                for key in ("accuracy", "val_accuracy")
            }
            test = accuracies["val_accuracy"]
            epochs = list(range(1, 1 + len(test)))
            curves[way] = (name, {"x": epochs, "accuracies": test})
            originals.append(one["original"])
            drawn[f"figure3-{name.replace(' ', '-')}.png"] = (
                plots.plot_training,
                {
                    "protected": accuracies,
                    "layer": {**course, "name": f"{course['layer']}, {name}"},
                },
            )
    if drawn:
        content = {
            "x_label": "Epoch",
            "curves": dict(curves.values()),
            "original_accuracy": originals[0],
        }
        drawn["figure3.png"] = (plots.plot_curves, content)
    return drawn


def _noise(results, dataset) -> dict:
    for way, kind in (("paper", "T2"), ("paper", "T3"), ("hardened", "T3")):
        found = results.repeats(dataset, "resnet", way, "V3", kind).found
        for one in found:
            if "noise" not in one:
                continue
            content = {
                "x_label": "Elements with noise (%)",
                "title": f"{one['network']}, V3/{kind}",
                "valid_accuracy": one["valid"],
                "chance": 100 / one["classes"],
                "curves": {
                    name: {
                        "x": [100 * f for f in part["fractions"]],
                        "accuracies": part["accuracies"],
                    }
                    for name, part in one["noise"].items()
                },
            }
            return {"figure5.png": (plots.plot_curves, content)}
    return {}
