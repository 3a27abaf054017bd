"""What `find_leaks` reports, and what it says to do."""

import dataclasses
import pathlib
import shutil
import textwrap

from keras_passport.passports.entries import ROLES
from keras_passport.texts import shown, table

_ADVICE = {
    "optimizer": (
        "An optimizer's state is in it: publish what model.save writes after "
        "model.compile() without it, keep kp.secret_checkpoint's files."
    ),
    "picture": (
        "An identity picture, or what was made of one: take it out; anybody "
        "who has it can make the feature maps again."
    ),
    "passport": (
        "A passport's own numbers: never publish a passport file, a packed "
        "passport or a request that has one; take the file out."
    ),
    "versions": (
        "Two versions under one passport tell its keys: publish one of them, "
        "and another only under a new passport, after a new training."
    ),
    "hidden": (
        "γ or β, as an unlocked model, an export of a bound model or a log of "
        "hidden_parameters() has them: publish the protected model "
        "(model.save, kp.export_saved_model) instead."
    ),
    "kernel": (
        "A protected kernel with its rows in order, as the original, an "
        "unlocked copy or the network before hide_rows has it: who has that "
        "and what is published has the order of rows, and most of γ and β; "
        "take the file out."
    ),
}
_OUT_ALREADY = (
    "What was public already stays known: make a new passport, and train the "
    "model again with it."
)


@dataclasses.dataclass(frozen=True)
class Leak:
    """A secret, or a part of one, that was found.

    Args:
        path: The file.
        place: Where in it: archive members, an array's name, a position.
        what: Which secret, and in which form.
        measure: Absolute correlation, or for bytes and printed numbers how
            many runs of them were found, and of a kernel 1.
        bound: What a secret that is not there reaches: 0 runs, or the
            correlation that has a chance of 1e-6 over all comparisons.
        layer: Path of the layer whose secret it is; "" for the seed and
            identity images.
        role: `"gamma"`, `"beta"`, or "".
    """

    path: str
    place: str
    what: str
    measure: float
    bound: float
    layer: str
    role: str

    @property
    def advice(self) -> str:
        """What to do about it, in a sentence."""
        if "optimizer" in self.place.lower():
            return _ADVICE["optimizer"]
        if self.what.startswith("identity image"):
            return _ADVICE["picture"]
        if "versions" in self.what:
            return _ADVICE["versions"]
        if self.what.startswith(("hidden", "folded")):
            return _ADVICE["hidden"]
        if self.what.startswith("kernel"):
            return _ADVICE["kernel"]
        return _ADVICE["passport"]


@dataclasses.dataclass(frozen=True)
class Trace:
    """A likeness that a kernel explains; not a leak, but worth knowing.

    Args:
        layer: The layer's path.
        role: `"gamma"` or `"beta"`.
        place: `"kernel"` for what a trained kernel shows of its key. Else
            the array that is like the hidden parameter: by more than for
            independent numbers, but other keys of this kernel would be, too.
            Moving means are like the γ of image keys: both are what the
            kernel makes of a mean patch. `"signs, by the filters"` for what
            their asymmetry tells of the signs of γ.
        cosine: Of the key and the kernel's first left singular vector, or of
            the hidden parameter and the array; centred. Of signs, the part
            that a regression on the other layers' filters finds.
        chance: For a kernel, what at most one in a hundred unrelated keys
            reaches, and for signs what one in a hundred draws of them does;
            else the bound as for a leak.
    """

    layer: str
    role: str
    place: str
    cosine: float
    chance: float


@dataclasses.dataclass(frozen=True)
class NotExamined:
    """Something that was not searched, or not in every way.

    Args:
        path: The file or folder.
        place: Where in it, as for a leak; "" for all of it.
        reason: Why.
    """

    path: str
    place: str
    reason: str


@dataclasses.dataclass(frozen=True)
class LeakReport:
    """What `find_leaks` found, and where it looked.

    `print(report)` shows a table; `report.to_dict()` goes to JSON. No value
    of a secret is in either.

    Args:
        leaks: What was found.
        traces: Per protected layer and role, what its kernel shows of its
            key, and arrays that are like hidden parameters by the kernel.
        examined: Numbers of files, arrays, kernels among them, bytes
            (unpacked) and comparisons.
        untold: Secrets with too few independent elements, or different
            values, to tell a correlation from chance. They were looked for as
            bytes and printed numbers alone.
        notes: What could not be looked for.
        not_examined: What was not searched, or not in every way.
    """

    leaks: tuple[Leak, ...]
    traces: tuple[Trace, ...]
    examined: dict[str, int]
    untold: tuple[str, ...]
    notes: tuple[str, ...]
    not_examined: tuple[NotExamined, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether all was examined, and nothing was found."""
        return not self.leaks and not self.not_examined

    def to_dict(self) -> dict:
        """Plain lists, strings and numbers, for JSON."""
        about = {"clean": self.clean, **dataclasses.asdict(self)}
        for row, leak in zip(about["leaks"], self.leaks, strict=True):
            row["advice"] = leak.advice
        return about

    def __str__(self):
        width = max(60, shutil.get_terminal_size().columns)
        blocks = []
        if self.leaks:
            head = ("file", "place", "layer", "secret", "found", "chance")
            rows = [
                (
                    pathlib.Path(leak.path).name,
                    leak.place,
                    f"{leak.layer} {leak.role}",
                    leak.what,
                    f"{leak.measure:.4g}",
                    f"{leak.bound:.4g}",
                )
                for leak in self.leaks
            ]
            blocks.append(table([head, *rows], width))
            advice = [leak.advice for leak in self.leaks]
            advice = [*dict.fromkeys(advice), _OUT_ALREADY]
            blocks.append(_lines([f"to do: {text}" for text in advice], width))
        if self.traces:
            traces = {(t.place, t.layer, t.role): t for t in self.traces}
            rows = [
                (*names, *(_cosine(traces.get((*names, r))) for r in ROLES))
                for names in dict.fromkeys(name[:2] for name in traces)
            ]
            head = ("trace in", "of layer", "gamma (chance)", "beta (chance)")
            blocks.append(table([head, *rows], width))
        lines = [f"too small to tell: {name}" for name in self.untold]
        lines += [f"note: {note}" for note in self.notes]
        for left in self.not_examined:
            place = f": {left.place}" if left.place else ""
            lines.append(f"NOT EXAMINED: {left.path}{place}: {left.reason}")
        numbers = ", ".join(f"{n} {what}" for what, n in self.examined.items())
        left = len(self.not_examined)
        lines.append(
            f"{len(self.leaks)} leaks found. Examined: {numbers}"
            + (f". NOT EXAMINED: {left}, see above" if left else "")
        )
        blocks.append(_lines(lines, width))
        return "\n\n".join(blocks)


def _lines(texts, width):
    return "\n".join(textwrap.fill(shown(text, None), width) for text in texts)


def _cosine(trace):
    return f"{trace.cosine:.2f} ({trace.chance:.2f})" if trace else "-"
