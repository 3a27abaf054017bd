"""`PassportReport`: what became of each layer of a model, and why."""

import dataclasses
import shutil

from keras_passport.texts import table


@dataclasses.dataclass(frozen=True)
class ReportRow:
    """What became of one kernel layer or normalisation.

    Args:
        path: The layer's path in the model.
        layer_type: Class name.
        role: `"kernel"` or `"normalization"`.
        protected: Whether a passport layer took its place.
        reason: Why not, or for a protected layer, together with what.
    """

    path: str
    layer_type: str
    role: str
    protected: bool
    reason: str


@dataclasses.dataclass(frozen=True)
class PassportReport:
    """A row for every kernel layer and every normalisation of a model.

    `print(report)` shows a table; `report.to_dict()` goes to JSON.

    Args:
        function: Name of the passport function.
        rows: The rows in the graph's order.
    """

    function: str
    rows: tuple[ReportRow, ...]

    @property
    def protected(self) -> list[str]:
        """Paths of the kernel layers that are protected."""
        return [
            row.path
            for row in self.rows
            if row.protected and row.role == "kernel"
        ]

    def to_dict(self) -> dict:
        """Plain lists, strings and numbers, for JSON."""
        return {
            "function": self.function,
            "protected": len(self.protected),
            "rows": [dataclasses.asdict(row) for row in self.rows],
        }

    def __str__(self):
        head = ("layer", "type", "passport", "why")
        rows = [
            (
                row.path,
                row.layer_type,
                self.function if row.protected else "-",
                row.reason,
            )
            for row in self.rows
        ]
        width = shutil.get_terminal_size().columns
        kernels = sum(row.role == "kernel" for row in self.rows)
        return (
            f"{table([head, *rows], width, widest=28)}\n"
            f"{len(self.protected)} of {kernels} kernel layers protected"
        )
