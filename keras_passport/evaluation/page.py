"""`report.html`: one page that needs nothing else, for large and small screens.

Nothing secret is on it: no values of a passport, and not which guesses of
fakes were right.
"""

import base64
import html
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

from keras_passport import plots
from keras_passport.attacks import AttackResult
from keras_passport.evaluation import verdict
from keras_passport.files import write_bytes

_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; color: #222;
  background: #fff; font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; }
h2 { font-size: 1.15rem; margin-top: 2rem; }
img { display: block; width: 100%; height: auto; }
figure { margin: 0; }
figcaption, small, .quiet { color: #555; font-size: .875rem; }
.verdict { border-left: .35rem solid #777; background: #f4f4f4;
  padding: .75rem 1rem; overflow-wrap: anywhere; }
.verdict.holds { border-color: #2ca02c; }
.verdict.falls { border-color: #d62728; }
.verdict p { margin: .25rem 0; }
.verdict p:first-child { font-weight: 600; }
.table { overflow-x: auto; }
.attacks { min-width: 56rem; }
.facts th { border-bottom-color: #ddd; }
.figures { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); }
table { border-collapse: collapse; font-size: .9rem; width: 100%; }
th, td { padding: .4rem .6rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid #ddd; }
th { border-bottom-color: #888; white-space: nowrap; }
td.number { text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
th.number { text-align: right; }
td small { display: block; }
.bar { height: .35rem; min-width: 6rem; background: #eee; }
.bar i { display: block; height: 100%; background: #1f77b4; }
.falls td.status, .failed td.status { color: #b3161c; font-weight: 600; }
.holds td.status { color: #1d7a1d; }
.worst { background: #fff6e5; }
"""

_WORDS = {
    "attack": "what was done",
    "S": "protection strength, valid passport minus attack (the paper's eq. "
    "7); a network is well-protected where S > 50 (Definition 2)",
    "A": "advantage, attack minus training from scratch on the same data: "
    "whether the network was worth stealing; with an ancestor or a service's "
    "answers, minus what those give by themselves; without labels, minus "
    "saying one class of every picture",
    "holds, falls": "S over 50, or not",
    "paralysed": "on average the trials were no better than saying one class "
    "of every picture",
    "failed": "a training that learned nothing: it says nothing about the "
    "protection",
    "control": "no attack: what the data are worth without the network",
}


def write(path: pathlib.Path, content: dict[str, Any]) -> None:
    """Writes the page in one step.

    Args:
        path: Of the page.
        content: `title`, `facts` (dict), `rows`, `verdict` (as of `verdict`),
            `changes` (as for `verdict.changes_table`) and `figures`: list of
            tuples of a drawing function of `kp.plots`, its mapping and a
            caption.
    """
    rows = content["rows"]
    top = verdict.worst(rows)
    sections = [
        f"<h1>{html.escape(content['title'])}</h1>",
        f'<div class="verdict {top["status"] if top else ""}">',
        *(f"<p>{html.escape(line)}</p>" for line in content["verdict"]),
        "</div>",
        "<h2>The network</h2>",
        _facts(content["facts"]),
        "<h2>The attacks</h2>",
        _table(rows, top),
        '<p class="quiet">Test accuracy in per cent, with 95 % intervals. '
        + " ".join(
            f"<b>{html.escape(word)}</b>: {html.escape(meaning)}."
            for word, meaning in _WORDS.items()
        )
        + "</p>",
        *_changes(content["changes"]),
        '<h2>Figures</h2>\n<div class="figures">',
        *(_figure(*figure) for figure in content["figures"]),
        "</div>",
    ]
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, '
        'initial-scale=1">\n'
        f"<title>{html.escape(content['title'])}</title>\n"
        f"<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )
    write_bytes(path, page.encode())


def _facts(facts):
    cells = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td>"
        "</tr>"
        for name, value in facts.items()
    )
    return f'<div class="table"><table class="facts">{cells}</table></div>'


def _changes(changes):
    if not changes:
        return []
    head = "".join(
        f'<th class="number">{name}</th>'
        for name in ("Valid passport", "Fakes, mean", "Best fake")
    )
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th>"
        + "".join(
            f'<td class="number">{100 * value:.1f}</td>'
            for value in found.values()
        )
        + "</tr>"
        for name, found in changes.items()
    )
    return [
        "<h2>What changes of the network leave to its owner</h2>",
        f'<div class="table"><table><tr><th>Change</th>{head}</tr>{rows}'
        "</table></div>",
    ]


def _table(rows, top):
    head = (
        '<tr><th>Attack</th><th class="number">Accuracy</th>'
        '<th class="number">S</th><th class="number">A</th><th>Result</th>'
        "<th>Attacker has</th><th>Spent</th></tr>"
    )
    return (
        f'<div class="table"><table class="attacks">{head}'
        + "".join(_row(row, row is top) for row in rows)
        + "</table></div>"
    )


def _row(row, is_worst):
    def number(value, interval):
        low, high = interval
        return (
            f'<td class="number">{value:.1f}'
            f"<small>{low:.1f} to {high:.1f}</small>"
        )

    result = html.escape(verdict.status_of(row))
    if is_worst:
        result = f"<b>worst case</b>: {result}"
    more = ""
    if "success_interval" in row:
        high = 100 * row["success_interval"][1]
        more = (
            f"<small>{row['successes']} of {row['trials']:,} fakes leave S at "
            f"{verdict.THRESHOLD} or under: at most {high:.2g} % do</small>"
        )
    return (
        f'<tr class="{row["status"]} {"worst" if is_worst else ""}">'
        f"<td>{html.escape(verdict.named(row))}</td>"
        + number(row["accuracy"], row["interval"])
        + f'<div class="bar"><i style="width:{row["accuracy"]:.1f}%"></i></div>'
        "</td>"
        + number(row["strength"], row["strength_interval"])
        + "</td>"
        + _advantage(row, number)
        + f'</td><td class="status">{result}{more}</td>'
        f"<td>{html.escape(row['knowledge'])}</td>"
        f"<td>{html.escape(verdict.spent(row))}"
        f"<small>{row['seconds']:.0f} s, judged on {row['examples']:,} "
        "pictures</small></td></tr>"
    )


def _advantage(row, number):
    if row.get("advantage") is None:
        return "<td>"
    return number(row["advantage"], row["advantage_interval"])


def _figure(draw: Callable, numbers: dict, caption: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "figure.png"
        draw(numbers, path)
        data = base64.b64encode(path.read_bytes()).decode()
    words = html.escape(caption)
    return (
        f'<figure><img alt="{words}" src="data:image/png;base64,{data}">'
        f"<figcaption>{words}</figcaption></figure>"
    )


def figures(
    records: list[dict], rows: list[dict], numbers: dict, noise: dict
) -> list[tuple]:
    """The paper's figures of what was found; see `write`.

    Args:
        records: As `Records.perform` returns them.
        rows: One for each record.
        numbers: As `Owner.numbers` returns them.
        noise: From a name to what `kp.audit.accuracy_under_noise` returns.
    """
    lines = {
        f"{name}_accuracy": 100 * numbers[name] / numbers["total"]
        for name in ("original", "valid")
        if name in numbers
    }
    chance = {"chance": numbers["chance"]}
    found = [
        (
            plots.plot_fakes,
            {
                **lines,
                "fake_accuracies": _per_cent(record["result"]["accuracies"]),
            },
            f"{record['title']}: accuracies (the paper's Figure 6)",
        )
        for record in records
        if "num_fakes" in record["budget"]
    ]
    found += [
        (
            plots.plot_fakes,
            {
                **lines,
                "fake_accuracies": _per_cent(record["result"]["accuracies"]),
                "attack": "RevA's trials",
            },
            f"{verdict.named(row)}: accuracies of all trials (the paper's "
            "Figure 7)",
        )
        for record, row in zip(records, rows, strict=True)
        if record["attack"].startswith("reverse_engineering")
        and len(record["result"]["accuracies"]) > 1
    ]
    by_data, courses = {}, {}
    for record, row in zip(records, rows, strict=True):
        budget, result = record["budget"], record["result"]
        if "fraction" not in budget:
            continue
        name = row["title"]
        if budget.get("source") == "disjoint":
            name += ", other data"
        curve = by_data.setdefault(name, {"x": [], "accuracies": []})
        curve["x"].append(100 * budget["fraction"])
        curve["accuracies"].append(row["accuracy"])
        chosen = AttackResult.from_dict(result).chosen
        history = (result["history"] or [{}] * (chosen + 1))[chosen]
        course = history.get("history", {}).get("val_accuracy")
        if course and budget["fraction"] == 1:
            courses[name] = {
                "x": list(range(1, len(course) + 1)),
                "accuracies": _per_cent(course),
            }
    for curves, label, caption in (
        (
            by_data,
            "Part of the data (%)",
            "Accuracy against the attacker's data",
        ),
        (
            courses,
            "Epoch",
            "Course of trainings on all data, on the attacker's validation "
            "part",
        ),
        (
            {
                name: {
                    "x": _per_cent(values["fractions"]),
                    "accuracies": [_per_cent(a) for a in values["accuracies"]],
                }
                for name, values in noise.items()
            },
            "Elements of the valid passport with noise (%)",
            "Accuracy with noise on the valid passport (the paper's Figure 5)",
        ),
    ):
        if curves:
            figure = {**lines, **chance, "x_label": label, "curves": curves}
            figure["log"] = curves is by_data
            found.append((plots.plot_curves, figure, caption))
    return found


def _per_cent(fractions):
    return [100 * fraction for fraction in fractions]
