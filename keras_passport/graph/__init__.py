"""Keras's functional graph: finding, walking, rebuilding, copying.

Nothing outside of this folder touches what Keras keeps to itself of it. What to
find or to replace is for `models/` to say.
"""

from keras_passport.lazy import exported

__getattr__, __dir__, __all__ = exported(
    __name__,
    {
        "Graph": "structure",
        "Rewrite": "rebuilding",
        "any_sizes": "tracing",
        "children": "structure",
        "clone": "rebuilding",
        "copy_state": "states",
        "copy_trainable": "states",
        "copy_variable": "states",
        "extra_arguments": "structure",
        "functional_of": "structure",
        "has_more_state": "states",
        "inputs_of": "structure",
        "is_clonable": "rebuilding",
        "is_model": "structure",
        "is_only_graph": "structure",
        "left_alone": "tracing",
        "operation_of": "structure",
        "outputs_of": "structure",
        "positional": "structure",
        "rebuild": "rebuilding",
        "shared_layers": "structure",
        "thaw": "states",
        "walk": "structure",
        "with_extra": "rebuilding",
    },
)
