"""What a verification says: each step's figure, its threshold, the verdict."""

import dataclasses
import os

from keras_passport import files, sealed
from keras_passport.texts import chance, shown

DERIVED, NOT_SHOWN, CONTESTED = "derived", "not shown", "contested"
# Of a rival's claim alone.
NOT_EXAMINED = "not examined"


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a verification.

    Args:
        name: `"commitment"`, `"provenance"`, `"kernels"`, `"signs"`,
            `"passport"` or `"noise"`.
        holds: Whether it speaks for the claim; `None` where it can't be done.
        figure: What was measured.
        threshold: What it had to reach.
        p: The chance of such a figure without any connection.
        null: The largest figure that a null had.
        nulls: How many nulls there were.
        text: A sentence that says what it is.
    """

    name: str
    holds: bool | None
    text: str
    figure: float | None = None
    threshold: float | None = None
    p: float | None = None
    null: float | None = None
    nulls: int = 0

    def to_dict(self) -> dict:
        """The step as JSON values; numbers have nine digits."""
        return {
            name: _rounded(value)
            for name, value in dataclasses.asdict(self).items()
        }


@dataclasses.dataclass(frozen=True)
class VerificationReport:
    """Whether a suspect network is derived from a claimed one.

    `print(report)` shows a table; `to_json()` is the same, byte for byte, for
    whoever repeats the verification from the files.

    Args:
        owner: Whose claim was examined.
        verdict: `"derived"`, `"not shown"` or `"contested"`.
        reason: Why, in a sentence.
        steps: What was examined.
        false_positive: A bound on the chance of the verdict `"derived"` for
            a network without any connection, such as a common ancestor.
        settings: What somebody needs to repeat it: seeds, numbers of nulls.
        layers: For each of the owner's layers that was found: path, the
            suspect's, mean cosine, agreeing signs and channels.
        noise: Levels, means and deviations of the record's noise curve and
            the suspect's; `None` for none.
        rivals: Of each other claim: owner, date and verdict, which may also
            be `"not examined"`: what was brought does not fit together. None
            are examined where the claim itself does not hold.
    """

    owner: str
    verdict: str
    reason: str
    steps: tuple[Step, ...]
    false_positive: float
    settings: dict
    layers: tuple[dict, ...]
    noise: dict | None = None
    rivals: tuple[dict, ...] = ()

    def __getitem__(self, name: str) -> Step:
        """A step by its name."""
        for step in self.steps:
            if step.name == name:
                return step
        raise KeyError(name)

    @property
    def rival_texts(self) -> list[str]:
        """A sentence on each rival's claim."""
        return [
            f"claim of {shown(rival['owner'])}, {_dated(rival['dated'])}: "
            + rival["verdict"]
            for rival in self.rivals
        ]

    def to_dict(self) -> dict:
        """The report as JSON values. No secret is in it."""
        return {
            "false_positive": _rounded(self.false_positive),
            "layers": [
                {name: _rounded(value) for name, value in layer.items()}
                for layer in self.layers
            ],
            "noise": self.noise
            and {
                name: [_rounded(value) for value in values]
                for name, values in self.noise.items()
            },
            "owner": self.owner,
            "reason": self.reason,
            "rivals": list(self.rivals),
            "settings": self.settings,
            "steps": [step.to_dict() for step in self.steps],
            "verdict": self.verdict,
        }

    def to_json(self) -> bytes:
        """The one text of the report, UTF-8."""
        return sealed.canonical(self.to_dict()) + b"\n"

    def save(self, path: str | os.PathLike) -> None:
        """Writes `to_json()`.

        Args:
            path: File to write, replaced if it exists.
        """
        files.write_bytes(path, self.to_json())

    def __str__(self):
        lines = [
            f"{self.verdict.upper()}: {self.reason}",
            f"claim of {shown(self.owner)}; chance of this verdict for a "
            f"foreign network at most {chance(self.false_positive)}",
        ]
        for step in self.steps:
            mark = {True: "holds", False: "FAILS", None: "-"}[step.holds]
            figures = []
            if step.figure is not None:
                figures.append(f"{step.figure:.4f}")
            if step.threshold is not None:
                figures.append(f"of at least {step.threshold:.4f}")
            if step.nulls:
                figures.append(f"{step.nulls} nulls at most {step.null:.4f}")
            if step.p is not None:
                figures.append(f"p = {chance(step.p)}")
            lines.append(f"{step.name:<11}{mark:<6} {step.text}")
            if figures:
                lines.append(" " * 18 + ", ".join(figures))
        lines += [f"{'rival':<18}{text}" for text in self.rival_texts]
        return "\n".join(lines)


def _dated(date) -> str:
    return f"of {date}" if date else "of no proved date"


def _rounded(value):
    if isinstance(value, bool) or not isinstance(value, float):
        return value
    return float(f"{value:.9g}")
