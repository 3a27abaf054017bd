"""A verification on one page, with pictures, for those who decide."""

import base64
import html
import io
import os
from typing import Any

import numpy as np

from keras_passport import files, plotted
from keras_passport.passports.derivation import image_arrays
from keras_passport.texts import chance, shown

_STYLE = """
body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}
table{border-collapse:collapse}td,th{padding:.3em .8em;text-align:left;
border-bottom:1px solid #ccc;vertical-align:top}h1{margin-bottom:0}
.holds{color:#060}.fails{color:#a00}img{max-width:100%}
"""
_PICTURES = 20
_WORDS = {True: "holds", False: "fails", None: "can't be done"}


def save(report: Any, path: str | os.PathLike, passport: Any = None) -> None:
    """Writes a `VerificationReport` as one HTML file.

    Args:
        report: The report.
        path: File to write, replaced if it exists.
        passport: Whose identity images to show, once the claim is opened and
            they are no secret any more; `None` for none.

    Example:

    >>> claim, opening = kp.ownership.claim(
    ...     passport, owner="Ada Ltd", model=model
    ... )
    >>> evidence = kp.ownership.Evidence(claim, opening, passport, model)
    >>> suspect = kp.unlock(model, passport)
    >>> report = kp.ownership.verify(
    ...     suspect, evidence, test, nulls=200, fakes=5
    ... )
    >>> kp.ownership.page.save(report, "report.html", passport)
    """
    parts = [
        f"<h1>{html.escape(report.verdict.capitalize())}</h1>",
        f"<p>{_text(report.reason)}.</p>",
        f"<p>Claim of {_text(report.owner)}. The chance of the verdict "
        f"“derived” for a foreign network is at most "
        f"{chance(report.false_positive)}.</p>",
        _steps(report),
        _picture("Signs of γ that agree, by layer", _signs(report)),
    ]
    if report.rivals:
        parts.append("<h2>Other claims</h2>")
        parts += [f"<p>{_text(text)}." for text in report.rival_texts]
    if report.noise:
        parts.append(_picture("Noise on the passport", _noise(report.noise)))
    if passport is not None and passport.images is not None:
        parts.append(_picture("Identity images", _images(passport.images)))
    parts.append(
        "<h2>To repeat it</h2><p><code>keras-passport verify FOLDER</code>, "
        f"with {_text(report.settings)}</p>"
    )
    text = (
        "<!doctype html><html lang=en><meta charset=utf-8><title>"
        f"{_text(report.owner)}: {_text(report.verdict)}</title>"
        f"<style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )
    files.write_bytes(path, text.encode())


def _text(value) -> str:
    return html.escape(shown(value))


def _steps(report) -> str:
    rows = []
    for step in report.steps:
        word = _WORDS[step.holds]
        rows.append(
            f"<tr><td>{step.name}<td class={word.split()[0]}>{word}"
            f"<td>{_text(step.text)}<td>{_number(step.figure)}"
            f"<td>{_number(step.threshold)}<td>{_number(step.null)}"
            f"<td>{'' if step.p is None else chance(step.p)}"
        )
    head = "step, , what was measured, figure, threshold, best null, p"
    return (
        "<table><tr>"
        + "".join(f"<th>{name}" for name in head.split(", "))
        + "".join(rows)
        + "</table>"
    )


def _number(value) -> str:
    return "" if value is None else f"{value:.4f}"


def _picture(title, figure) -> str:
    if figure is None:
        return ""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return (
        f"<h2>{title}</h2><img alt='{title}' "
        f"src='data:image/png;base64,{encoded}'>"
    )


def _figure(width, height):
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def _signs(report):
    rows = [layer for layer in report.layers if layer["agreeing"] is not None]
    if not rows:
        return None
    figure = _figure(8, 3)
    axes = figure.subplots()
    parts = [row["agreeing"] / row["channels"] for row in rows]
    axes.bar(range(len(rows)), parts, color="#36c")
    axes.axhline(0.5, color="#a00", linestyle="--", label="by chance")
    axes.set(
        ylim=(0, 1.02),
        ylabel="part of the channels",
        xticks=range(len(rows)),
    )
    axes.set_xticklabels(
        [plotted.literal(shown(row["path"], 60)) for row in rows],
        rotation=60,
        ha="right",
        fontsize=7,
    )
    axes.legend(loc="lower right")
    return figure


def _noise(curves):
    figure = _figure(6, 3.5)
    axes = figure.subplots()
    for name, color in (("recorded", "#36c"), ("found", "#e60")):
        axes.errorbar(
            curves["levels"],
            curves[name],
            curves[f"{name}_deviation"],
            label=name,
            color=color,
            capsize=3,
        )
    axes.set(
        xlabel="part of the passport's elements that is noise",
        ylabel="accuracy",
        ylim=(0, 1.02),
    )
    axes.legend()
    return figure


def _images(images):
    pictures = [
        picture
        for array in image_arrays(images)
        for picture in np.asarray(array)[:_PICTURES]
        if np.ndim(picture) == 3
    ][:_PICTURES]
    if not pictures:
        return None
    columns = min(len(pictures), 10)
    rows = -(-len(pictures) // columns)
    figure = _figure(columns, rows)
    grid = np.atleast_1d(figure.subplots(rows, columns)).reshape(-1)
    for axes in grid:
        axes.axis("off")
    for axes, picture in zip(grid, pictures, strict=False):
        least, most = float(picture.min()), float(picture.max())
        picture = (picture - least) / max(most - least, 1e-9)
        if picture.shape[-1] != 3:
            picture = picture.mean(axis=-1)
        axes.imshow(np.squeeze(picture), cmap="gray")
    return figure
