"""The cells of the paper's tables: which there are, how large, in what order.

A cell is a run directory, `DIR/<network>-<dataset>/<name>`, such as
`resnet-cifar10/V3-T3`, and `V3-T3-seed1` for a repeat.
"""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import keras

from common import networks
from common.data import SOURCES

FUNCTIONS = ("V1", "V2", "V3")
KINDS = {"T1": "random_pattern", "T2": "fixed_image", "T3": "random_image"}
NETWORKS = {
    "resnet": networks.resnet,
    "vgg": networks.vgg,
    "alexnet": networks.alexnet,
}

_PAPER = {
    "key_scaling": "paper",
    "hide_statistics": False,
    "hide_rows": False,
}
# Ways to protect a network, and how a trainer's settings differ for them. The
# paper's keys are as large as its feature maps make them, and its networks
# publish their statistics.
WAYS: dict[str, dict[str, Any]] = {
    "paper": _PAPER,
    "hardened": {
        "key_scaling": "signed",
        "hide_statistics": True,
        "hide_rows": True,
    },
    # Not trained.
    "exact": {},
    "exact-order": {},
    # Figure 3: from the original's weights as they are, with γ and β of the
    # original, and exactly protected. A hundred fakes do.
    "pretrained": {**_PAPER, "num_fakes": 100},
    "calibrated": {**_PAPER, "num_fakes": 100},
    "exact-tuned": {
        "key_scaling": "signed",
        "hide_statistics": False,
        "hide_rows": False,
        "num_fakes": 100,
        "epochs": 3,
        # Its statistics are frozen, so that steps must be small.
        "learning_rate": 0.003,
    },
}
EXACT = ("exact", "exact-order")
# Whose passport is solved for: fakes of it are patterns, as its keys are
# feature maps of nothing.
SOLVED = (*EXACT, "exact-tuned")
# Shown in Figure 3, and not attacked.
COURSES = ("pretrained", "calibrated", "exact-tuned")


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large the trainings and the attacks are.

    Args:
        note: What it is for.
        networks: Options of `NETWORKS`' functions.
        datasets: What is classified.
        epochs: Of each training.
        repeats: Networks of each cell.
        fakes: How many fake passports, and test pictures for each.
        attackers: What attackers with labels have: pairs of a part of the
            training set and epochs.
        more: Other settings of the trainers.
    """

    note: str
    networks: dict[str, dict[str, Any]]
    datasets: tuple[str, ...]
    epochs: int
    repeats: int
    fakes: tuple[int, int]
    attackers: tuple[tuple[float, int], ...]
    more: dict[str, Any] = dataclasses.field(default_factory=dict)

    def in_precision(self, name: str) -> "Scale":
        """The same, but that trained networks compute in another type."""
        more = {**self.more, "mixed_precision": name}
        return dataclasses.replace(self, more=more)


_CIFAR = ("cifar10", "cifar100")
SCALES = {
    # ResNet-20, and networks that cost as much: a training step of V3 takes
    # 0.38, 0.38 and 0.32 s of processor time, in this order.
    "cpu": Scale(
        "a ResNet column overnight on two cores",
        {
            "resnet": {"depth": None, "width": 16},
            "vgg": {"depth": 16, "width": 24},
            "alexnet": {"width": 32},
        },
        ("cifar10",),
        epochs=10,
        repeats=2,
        fakes=(1000, 2000),
        attackers=((0.04, 30), (0.1, 20)),
    ),
    # Sizes are estimates, as no GPU could be tried: --minutes ends it in time.
    "gpu": Scale(
        "all of it in a quarter of an hour of a data-centre GPU, on JAX",
        {
            "resnet": {"depth": 18, "width": 32},
            "vgg": {"depth": 16, "width": 32},
            "alexnet": {"width": 64},
        },
        _CIFAR,
        epochs=8,
        repeats=1,
        fakes=(200, 2000),
        attackers=((0.1, 10),),
        more={"mixed_precision": "bfloat16"},
    ),
    "paper": Scale(
        "the paper's own",
        {
            "resnet": {"depth": 18, "width": 64},
            "vgg": {"depth": 16, "width": 64},
            "alexnet": {"width": 64},
        },
        _CIFAR,
        epochs=200,
        repeats=5,
        fakes=(1000, 10_000),
        attackers=((0.1, 60), (1.0, 30)),
    ),
    "digits": Scale(
        "to try the program",
        {
            "resnet": {"depth": 8, "width": 4},
            "vgg": {"depth": 11, "width": 4},
            "alexnet": {"width": 4},
        },
        ("digits",),
        epochs=2,
        repeats=1,
        fakes=(10, 200),
        attackers=((0.5, 1), (1.0, 1)),
    ),
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One protected network of the tables.

    Args:
        network: In `NETWORKS`.
        dataset: In `common.data.SOURCES`.
        way: In `WAYS`.
        function: `"V1"`, `"V2"` or `"V3"`.
        kind: `"T1"`, `"T2"` or `"T3"`; of the fakes, where the passport is
            solved for.
        seed: Number of the repeat.
    """

    network: str
    dataset: str
    way: str
    function: str
    kind: str
    seed: int = 0

    @property
    def trains(self) -> bool:
        """Whether it is trained, not protected exactly."""
        return self.way not in EXACT

    @property
    def is_compared(self) -> bool:
        """Whether ours stands beside the paper's with it: V3, T3 or solved."""
        is_chosen = (self.function, self.kind) == ("V3", "T3")
        return is_chosen and self.way not in COURSES or self.way in EXACT

    @property
    def is_attacked(self) -> bool:
        """Whether attackers with labels try it: Table 4 has no T2."""
        is_of_table_2 = self.way == "paper" and self.kind == "T2"
        return self.way not in COURSES and not is_of_table_2

    @property
    def shows_noise(self) -> bool:
        """Whether noise is tried on its passport (Figure 5)."""
        return (self.network, self.function) == ("resnet", "V3") and (
            self.way in ("paper", "hardened") and self.kind != "T1"
        )

    @property
    def name(self) -> str:
        """Of its directory."""
        parts = [] if self.way in SOLVED else [self.function, self.kind]
        if self.way != "paper":
            parts.append(self.way)
        if self.seed:
            parts.append(f"seed{self.seed}")
        return "-".join(parts)

    @property
    def group(self) -> str:
        """The directory of what shares its network and data."""
        return f"{self.network}-{self.dataset}"

    def path(self, folder: pathlib.Path) -> pathlib.Path:
        return folder / self.group / self.name

    def original(self, folder: pathlib.Path) -> pathlib.Path:
        """The unprotected network of all cells of its group and seed."""
        suffix = f"-seed{self.seed}" if self.seed else ""
        return folder / self.group / f"original{suffix}.keras"

    def config(self, scale: Scale, has_original: bool) -> dict[str, Any]:
        """What `cifar_resnet.py` and its like would call the run's flags."""
        defaults = SOURCES[self.dataset].defaults
        num_fakes, fake_examples = scale.fakes
        return {
            "passport": KINDS[self.kind],
            "function": self.function,
            "identity_images": None,
            "num_images": None,
            "epochs": scale.epochs,
            "batch_size": defaults["batch_size"],
            "learning_rate": defaults["learning_rate"],
            "weight_decay": 5e-4,
            "num_fakes": num_fakes,
            "fake_examples": fake_examples,
            "strategy": "none",
            "seed": self.seed,
            "dataset": self.dataset,
            "reference": "original.keras" if has_original else None,
            "mixed_precision": "none",
            "steps_per_execution": 1,
            **scale.networks[self.network],
            **scale.more,
            **WAYS[self.way],
        }

    def builder(self, config: dict[str, Any]) -> Callable[..., keras.Model]:
        """What builds its network, as a run's settings say."""
        options = {
            name: config[name] for name in ("depth", "width") if name in config
        }
        return functools.partial(NETWORKS[self.network], **options)


def cells_of(
    scale: Scale,
    networks: Sequence[str] = tuple(NETWORKS),
    datasets: Sequence[str] | None = None,
    ways: Sequence[str] = tuple(WAYS),
    functions: Sequence[str] = FUNCTIONS,
    kinds: Sequence[str] = tuple(KINDS),
    repeats: int | None = None,
) -> list[Cell]:
    """All cells of a scale, those that say most first.

    V3 with T3, the paper's own choice, for each network, and what stands
    beside it; the rest of the first network; then the others, then repeats.
    """
    cells = [
        Cell(network, dataset, way, function, kind, seed)
        for seed, dataset, network, way, function, kind in itertools.product(
            range(repeats or scale.repeats),
            datasets or scale.datasets,
            networks,
            ways,
            functions,
            kinds,
        )
        if _is_shown(network, way, function, kind)
    ]
    return sorted(cells, key=_turn)


def _is_shown(network: str, way: str, function: str, kind: str) -> bool:
    """Whether the paper, or we beside it, show such a cell."""
    if way == "paper":
        # Table 4 has no T2, and T2 is tried on ResNet alone.
        return network == "resnet" or kind != "T2"
    wanted = "T1" if way in SOLVED else "T3"
    if (function, kind) != ("V3", wanted):
        return False
    return network == "resnet" or way not in COURSES


def _turn(cell: Cell) -> tuple:
    """What cells are sorted by."""
    is_resnet, is_paper = cell.network == "resnet", cell.way == "paper"
    best = is_paper and (cell.function, cell.kind) == ("V3", "T3")
    if cell.seed:
        # Of the first network alone, before what Table 4 has of the others.
        stage = 4 if is_resnet and is_paper else 7
    elif is_resnet:
        stage = 2 if cell.way in COURSES else 1 if is_paper and not best else 0
    else:
        stage = 3 if best else 5 if is_paper else 6
    return (
        cell.dataset == "cifar100",
        stage,
        cell.seed,
        list(NETWORKS).index(cell.network),
        list(WAYS).index(cell.way),
        # T3, then T1, then T2; V3, then V1, then V2.
        ("T3", "T1", "T2").index(cell.kind),
        ("V3", "V1", "V2").index(cell.function),
    )
