"""Which layer of a passport is which layer of a model.

They have the same paths, mostly. A part that is built into a larger model has
a folder more, and Keras counts on where a program makes several models: the
same architecture's `conv2d` is `conv2d_7` then. The names that are left alike,
the numbers' distances and the layers' geometries in the graph's order tell
which is which; where they tell two things, or nothing, it is an error.
"""

import os
import re
import textwrap
import warnings
from collections.abc import Mapping

from keras_passport.errors import PassportError
from keras_passport.passports.geometry import Geometry
from keras_passport.texts import shown, table

# Rows of the table in an error, and letters of a path in it.
_ROWS = 40
_WIDTH = 60
_COUNTED = re.compile(r"(.*?)(?:_(\d{1,9}))?$", re.DOTALL)


def match(
    expected: Mapping[str, Geometry],
    received: Mapping[str, Geometry],
    whose: str = "passport",
) -> dict[str, str]:
    """Finds the layer of a passport for each layer of a model.

    By path; else by path without the folders that all of one side's are in;
    else by path but for the numbers that Keras gives, if they differ by the
    same everywhere; else, where no path is left alike, by their order. What
    is not by path is only taken if all geometries agree, and with a warning.

    Args:
        expected: Dict from path to geometry, of the model, in the order of
            its graph.
        received: The same of the passport.
        whose: What a warning says instead of it.

    Returns:
        Dict from the model's paths to the passport's, in the model's order.

    Raises:
        PassportError: If they don't fit, with both sides' layers.
    """
    if set(expected) == set(received):
        return _checked({path: path for path in expected}, expected, received)
    ours, theirs = _without_folders(expected), _without_folders(received)
    if set(ours) == set(theirs):
        names = {ours[name]: theirs[name] for name in ours}
        _checked(names, expected, received)
        if _are_in_folders(expected) and _are_in_folders(received):
            _warn(whose, names, "in other folders")
        return names
    names = _by_likeness(expected, received)
    if names is None:
        raise PassportError(_side_by_side(expected, received))
    _warn(whose, names, "of the same geometries in the same places")
    return names


def _by_likeness(expected, received) -> dict[str, str] | None:
    if len(expected) != len(received):
        return None
    shared = [path for path in expected if path in received]
    # A path of both that is of two kinds of layer proves nothing; otherwise
    # both mean one layer by it.
    names_hold = all(expected[path].fits(received[path]) for path in shared)

    def is_possible(names):
        return all(
            expected[path].fits(received[given])
            for path, given in names.items()
        ) and not (names_hold and any(names[path] != path for path in shared))

    in_order = dict(zip(expected, received, strict=True))
    ours, theirs = _counted(expected), _counted(received)
    if set(ours) == set(theirs):
        by_number = {ours[name]: theirs[name] for name in ours}
        if is_possible(by_number):
            if by_number != in_order and is_possible(in_order):
                return None
            return by_number
    if shared and names_hold:
        return None  # Another selection of layers, for all that is known.
    return in_order if is_possible(in_order) else None


def _without_folders(paths) -> dict[str, str]:
    """Paths by what is left of them without the folders that all are in."""
    split = [path.split("/")[:-1] for path in paths]
    depth = len(os.path.commonprefix(split))
    return {"/".join(path.split("/")[depth:]): path for path in paths}


def _are_in_folders(paths) -> bool:
    return any(name != path for name, path in _without_folders(paths).items())


def _counted(paths) -> dict[tuple, str]:
    """Paths by their names with numbers that start at 0 for each name."""
    inside = {
        path: [
            (stem, int(number or 0))
            for stem, number in (
                _COUNTED.match(name).groups() for name in short.split("/")
            )
        ]
        for short, path in _without_folders(paths).items()
    }
    first = {}
    for parts in inside.values():
        for stem, number in parts:
            first[stem] = min(number, first.get(stem, number))
    return {
        tuple((stem, number - first[stem]) for stem, number in parts): path
        for path, parts in inside.items()
    }


def _checked(names, expected, received):
    for path, given in names.items():
        if not expected[path].fits(received[given]):
            raise PassportError(
                f"Expected a passport for layer '{shown(path)}' with geometry "
                f"{expected[path].to_dict()}. "
                f"Received: {received[given].to_dict()}"
            )
    return names


def _warn(whose, names, how):
    renamed = [(given, path) for path, given in names.items() if path != given]
    examples = ", ".join(
        f"'{shown(old, 80)}' for '{shown(new, 80)}'" for old, new in renamed[:3]
    )
    then = "If they are not the model's, its outputs will be garbage."
    if whose == "passport":
        then = (
            "If that is right, passport.renamed({old: new}) says so once and "
            "for all; if not, the model's outputs will be garbage."
        )
    warnings.warn(
        f"The {whose}'s layers have other paths than the model's. Taken {how}: "
        f"{examples}{', ...' if len(renamed) > 3 else ''}. {then}",
        stacklevel=4,
    )


def _side_by_side(expected, received) -> str:
    rows = [("the model's", "the passport's")]
    ours, theirs = list(expected), list(received)
    for index in range(max(len(ours), len(theirs))):
        rows.append(
            tuple(
                _row(paths[index], geometries) if index < len(paths) else ""
                for paths, geometries in ((ours, expected), (theirs, received))
            )
        )
    if len(rows) > _ROWS:
        rows = [*rows[:_ROWS], ("...", "...")]
    return (
        f"Expected a passport for the model's {len(ours)} protected layers. "
        f"Received: one for {len(theirs)} layers; {difference(ours, theirs)}\n"
        f"{textwrap.indent(table(rows), '  ')}\n"
        "If it was made for these layers under other names, say which is "
        "which: passport.renamed({'the passport's path': 'the model's path'})."
        " If the model has but some of its layers, such as all but a head: "
        "passport.part(['the path of each', ...])."
        " Otherwise make one for this model."
    )


def _row(path, geometries):
    geometry = geometries[path]
    size = "x".join(map(str, geometry.key_shape))
    strides = "".join(f"/{n}" for n in {*geometry.strides} - {1})
    return f"{shown(path, _WIDTH)} ({size}{strides})"


def check_paths(expected, received) -> None:
    """Raises `PassportError` unless a user names a model's layers.

    Args:
        expected: The model's paths.
        received: What a user took for them.
    """
    expected, received = set(expected), set(received)
    if expected != received:
        raise PassportError(
            f"Expected a passport for the model's {len(expected)} protected "
            f"layers. Received: one for {len(received)} layers; "
            f"{difference(expected, received)}"
        )


def difference(expected, received) -> str:
    """What is missing among paths and what is unknown, a few of each."""
    expected, received = set(expected), set(received)
    return (
        f"missing: {few_of(expected - received)}; "
        f"unknown: {few_of(received - expected)}"
    )


def few_of(paths) -> str:
    """The first of some paths in words, for a message; "none" for none."""
    # A name that is no string may be anything, a number of a key too.
    names = sorted(
        shown(path, 80) if isinstance(path, str) else f"a {type(path).__name__}"
        for path in paths
    )
    listed = ", ".join(names[:3])
    return listed + (", ..." if len(names) > 3 else "") or "none"
