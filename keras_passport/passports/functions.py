"""The passport functions V1, V2 and V3 (Table 1)."""

import dataclasses

from keras_passport.errors import PassportError


@dataclasses.dataclass(frozen=True)
class PassportFunction:
    """Which of γ and β are hidden, that is, computed from the passport.

    Args:
        name: `"V1"`, `"V2"` or `"V3"`.
        hides_gamma: Whether γ = F(W, p_γ); otherwise γ is trainable.
        hides_beta: Whether β = F(W, p_β); otherwise β is trainable.

    Example:

    >>> from keras_passport.passports import functions
    >>> functions.get("V1").roles
    ('gamma',)
    """

    name: str
    hides_gamma: bool
    hides_beta: bool

    @property
    def roles(self) -> tuple[str, ...]:
        """The hidden parameters, in the order in which keys are packed."""
        return ("gamma",) * self.hides_gamma + ("beta",) * self.hides_beta


_FUNCTIONS = {
    "V1": PassportFunction("V1", hides_gamma=True, hides_beta=False),
    "V2": PassportFunction("V2", hides_gamma=False, hides_beta=True),
    "V3": PassportFunction("V3", hides_gamma=True, hides_beta=True),
}


def get(function: "str | PassportFunction") -> PassportFunction:
    """The passport function of a name, or the object itself.

    Raises:
        PassportError: If the name is not one of Table 1's.
    """
    if isinstance(function, PassportFunction):
        function = function.name
    if function not in _FUNCTIONS:
        raise PassportError(
            f"Expected function to be one of {', '.join(_FUNCTIONS)}. "
            f"Received: function={function!r}"
        )
    return _FUNCTIONS[function]
