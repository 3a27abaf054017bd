"""Where the time of a run goes: compilations, transfers, idle gaps."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import keras

from common.distribution import Distribution

# JAX's names of what it reports.
_COMPILED = "/jax/core/compile/backend_compile_duration"
_TRACED = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
)


class Timeline:
    """Measures from when it is made.

    Args:
        spread: what networks are trained with; `OnDevice` keeps the calls of
            its device.
    """

    def __init__(self, spread: Distribution):
        self._spread = spread
        self._stages: dict[str, float] = {}
        self._compilations = 0
        self._compiling = 0.0
        self._tracing = 0.0
        self._began = time.perf_counter()

    def listen(self) -> None:
        """Counts JAX's compilations from now on."""
        if keras.backend.backend() == "jax":
            from jax import monitoring

            monitoring.register_event_duration_secs_listener(self._hear)

    def _hear(self, event: str, seconds: float, **about: Any) -> None:
        if event == _COMPILED:
            self._compilations += 1
            self._compiling += seconds
        elif event in _TRACED:
            self._tracing += seconds

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time inside to a stage's."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._stages[name] = (
                self._stages.get(name, 0.0) + time.perf_counter() - began
            )

    def summary(self) -> dict[str, Any]:
        """Plain values: seconds, counts, bytes."""
        calls = getattr(self._spread, "calls", [])
        sent: dict[str, list[int]] = {}
        for name, size in getattr(self._spread, "sent", []):
            sent.setdefault(name, []).append(size)
        return {
            "wall": round(time.perf_counter() - self._began, 2),
            "stages": {k: round(v, 2) for k, v in self._stages.items()},
            "compilations": self._compilations,
            "compiling": round(self._compiling, 2),
            "tracing": round(self._tracing, 2),
            "calls": [
                [name, round(began - self._began, 3), round(ended - began, 3)]
                for name, began, ended in calls
            ],
            "sent": {
                name: {"times": len(sizes), "bytes": sum(sizes)}
                for name, sizes in sent.items()
            },
        }
