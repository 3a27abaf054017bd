"""A kernel layer of a network, in a form that is alike for all types."""

import dataclasses

import numpy as np


@dataclasses.dataclass(eq=False)
class KernelLayer:
    """One kernel layer of a network, in a form that is alike for all types.

    Args:
        path: Its name.
        kernel: float64 array `(positions, inputs, filters)`: a window's
            positions, input channels (of a filter's group), output channels.
        kind: `"full"`, `"grouped"` or `"depthwise"`: whether a filter sees
            all inputs, some of them, or one.
        gamma: Scale after it, `(filters,)`; `None` if there is none to see.
        beta: Shift, likewise; a bias where nothing normalises.
        mean: Mean of what the normalisation saw, without the kernel's bias:
            whoever adds a number to both changes nothing. `None` for none.
        variance: Variance of it, ε included; `None` for none.
        bias: Of bare variables the kernel's own, which is in `mean` or `beta`
            as well; `None` for none.
        others: The same layer in other forms, where it is not known which of
            them it has.
    """

    path: str
    kernel: np.ndarray
    kind: str = "full"
    gamma: np.ndarray | None = None
    beta: np.ndarray | None = None
    mean: np.ndarray | None = None
    variance: np.ndarray | None = None
    bias: np.ndarray | None = None
    others: tuple = ()

    @property
    def forms(self) -> tuple:
        """All forms that it may have, the likeliest first."""
        return (self, *self.others)

    @property
    def filters(self) -> int:
        """Number of output channels."""
        return self.kernel.shape[-1]

    @property
    def shape(self) -> tuple:
        """What must be alike in two layers that may be the same."""
        return (*self.kernel.shape, self.kind)

    @property
    def signs(self) -> np.ndarray:
        """Signs of γ; 1 where nothing normalises, since kernels hold them."""
        if self.gamma is None:
            return np.ones(self.filters)
        return np.where(self.gamma < 0, -1.0, 1.0)
