"""What the package's source may touch: Keras's own graph in one place."""

import ast
import pathlib

import pytest

import keras_passport

PACKAGE = pathlib.Path(keras_passport.__file__).parent
# What Keras keeps to itself of a graph, by the names of attributes.
PRIVATE = {
    "_functional",
    "_inbound_nodes",
    "_inputs_struct",
    "_keras_history",
    "_manual_input_spec",
    "_nodes",
    "_nodes_by_depth",
    "_operations",
    "_operations_by_depth",
    "_outbound_nodes",
    "_outputs_struct",
    "_run_through_graph",
}
MODULES = ("keras.src.models", "keras.src.ops")


def touches(source: str) -> set[str]:
    """What a module's code says of a graph's private parts."""
    said = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            said.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            said.add(node.value)
        elif isinstance(node, ast.ImportFrom) and node.module:
            said.update(f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            said.update(name.name for name in node.names)
    return {
        name
        for name in said
        if name in PRIVATE or name.startswith(tuple(f"{m}." for m in MODULES))
    }


@pytest.mark.parametrize(
    "source, expected",
    [
        ("model._inputs_struct", {"_inputs_struct"}),
        ("getattr(model, '_nodes', None)", {"_nodes"}),
        (
            "from keras.src.models.functional import Functional",
            {"keras.src.models.functional.Functional"},
        ),
        ("'''Docs say _functional.'''; model.inputs", set()),
    ],
)
def test_what_touches(source, expected):
    assert touches(source) == expected


def test_only_the_graph_folder_touches_keras_graphs():
    touching = {
        str(path.relative_to(PACKAGE)): names
        for path in sorted(PACKAGE.rglob("*.py"))
        if (names := touches(path.read_text(encoding="utf-8")))
    }
    # Which class a model's copy has is the graph's business too.
    elsewhere = {
        path: names
        for path, names in touching.items()
        if not path.startswith("graph/") and path != "subclasses.py"
    }
    assert not elsewhere
    assert any(path.startswith("graph/") for path in touching)
