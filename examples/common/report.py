"""What a run shows: one layer's course, the result, figures, a table."""

import platform
from typing import Any

import keras
import numpy as np

import keras_passport as kp
from common import training
from common.data import Dataset
from common.rundir import RunDirectory, load_model, read_json, write_json
from keras_passport import texts

# What a message calls them.
_NETWORKS = {"original": "original", "valid": "protected"}


class LayerWatch:
    """Follows one passport layer through a training, for Figure 3.

    Only means over a whole layer are taken: its hidden parameters, one by
    one, are as secret as the passport.

    Args:
        name: the layer's path in the model.
        layer: a `kp.PassportNormalization`.
    """

    def __init__(self, name: str, layer: Any):
        self.name = name
        self._layer = layer

    def start(self) -> None:
        """Looks at the kernel that an epoch begins with."""
        self._kernel = self._read_kernel()

    def measure(self) -> dict[str, float]:
        """Mean |ΔW| since `start`, and mean |γ| and |β| where hidden."""
        kernel = self._read_kernel()
        numbers = {"weight_change": np.abs(kernel - self._kernel).mean()}
        hidden = self._layer.hidden_parameters()
        for name, values in zip(("gamma", "beta"), hidden, strict=True):
            if values is not None:
                numbers[name] = np.abs(values).mean()
        return numbers

    def _read_kernel(self) -> np.ndarray:
        return keras.ops.convert_to_numpy(
            self._layer.layer.trainable_variables[0]
        )


def write(
    directory: RunDirectory,
    config: dict[str, Any],
    dataset: Dataset,
    fakes: dict[str, Any],
) -> None:
    """Evaluates both networks; writes result.json and figures, prints.

    Args:
        directory: where to, and where the networks are. They are read again,
            since those of a training may be spread over devices.
        config: what the run was asked for.
        dataset: whose test set to evaluate on.
        fakes: `accuracies` (fractions), `entropies` (bits), `seconds`.
    """
    original = load_model(directory.original)
    protected = directory.load_protected()
    histories = read_json(directory.history) or {}
    result = {
        **_accuracies(dataset, original, protected, fakes),
        "network": original.name,
        "num_classes": dataset.num_classes,
        "parameters": original.count_params(),
        "protected_layers": len(kp.protected_layers(protected)),
        "config": config,
        "examples": {
            "train": len(dataset.y_train),
            "test": len(dataset.y_test),
            "fakes": min(config["fake_examples"], len(dataset.y_test)),
        },
        "seconds": {
            **{
                stage: round(sum(histories[stage]["seconds"]), 1)
                for stage in ("original", "protected")
                if stage in histories
            },
            "fakes": round(fakes["seconds"], 1),
        },
        "versions": _versions(),
    }
    # What `attack.py` added, if the run is written once more.
    attacks = (read_json(directory.result) or {}).get("attacks")
    if attacks:
        result["attacks"] = attacks
    write_json(directory.result, result)
    kp.plots.plot_fakes(result, directory.fakes_figure)
    kp.plots.plot_training(_for_figure(histories), directory.training_figure)
    print(_table(result))
    print(f"Publish {directory.public}, keep {directory.owner}.")


def _accuracies(dataset, original, protected, fakes) -> dict[str, Any]:
    """Everything in per cent but entropies (bits) and a probability."""
    x_test = dataset.normalize(dataset.x_test)
    total = len(dataset.y_test)
    numbers = {}
    for name, model in (("original", original), ("valid", protected)):
        correct = training.count_right(
            model, x_test, dataset.y_test, _NETWORKS[name]
        )
        numbers[f"{name}_accuracy"] = 100 * correct / total
        numbers[f"{name}_interval"] = kp.metrics.accuracy_interval(
            correct, total
        )
    valid = numbers["valid_accuracy"]
    tried = 100 * np.asarray(fakes["accuracies"])
    inconsistency = kp.metrics.inconsistency(
        numbers["original_accuracy"], valid
    )
    strengths = kp.metrics.protection_strength(valid, tried)
    strength = float(np.mean(strengths))
    successes = sum(not kp.metrics.is_well_protected(s) for s in strengths)
    return {
        **numbers,
        "fake_accuracies": tried.tolist(),
        "fake_entropies": fakes["entropies"],
        "fake_mean": float(tried.mean()),
        "fake_deviation": float(tried.std(ddof=1)) if len(tried) > 1 else 0.0,
        "fake_maximum": float(tried.max()),
        "mean_fake_entropy": float(np.mean(fakes["entropies"])),
        "inconsistency": inconsistency,
        "protection_strength": strength,
        "functionality_preserving": kp.metrics.is_functionality_preserving(
            inconsistency
        ),
        "well_protected": kp.metrics.is_well_protected(strength),
        # A fake succeeds if it alone would leave S at 50 % or under.
        "successful_fakes": successes,
        "success_interval": kp.metrics.success_interval(successes, len(tried)),
    }


def _versions() -> dict[str, str]:
    return {
        "keras_passport": kp.__version__,
        "keras": keras.__version__,
        "backend": keras.backend.backend(),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _for_figure(histories: dict[str, Any]) -> dict[str, Any]:
    """`history.json` as `plot_training` takes it: accuracies in per cent."""
    figure: dict[str, Any] = {}
    for stage in ("original", "protected"):
        if stage in histories:
            figure[stage] = {
                name: [100 * value for value in histories[stage][name]]
                for name in ("accuracy", "val_accuracy")
            }
    figure["layer"] = {
        "name": histories["layer"],
        **{
            name: histories["protected"][name]
            for name in ("weight_change", "gamma", "beta")
            if name in histories["protected"]
        },
    }
    return figure


def _table(result: dict[str, Any]) -> str:
    def interval(name: str) -> str:
        low, high = result[f"{name}_interval"]
        return f"95 % interval {low:.2f} to {high:.2f}"

    def verdict(name: str) -> str:
        return "yes" if result[name] else "no"

    trials = len(result["fake_accuracies"])
    high = 100 * result["success_interval"][1]
    rows = [
        ("Original", result["original_accuracy"], interval("original")),
        ("Valid passport", result["valid_accuracy"], interval("valid")),
        (
            f"{trials} fakes, mean",
            result["fake_mean"],
            f"deviation {result['fake_deviation']:.2f}, "
            f"maximum {result['fake_maximum']:.2f}",
        ),
        (
            "Inconsistency I",
            result["inconsistency"],
            f"functionality-preserving (I < 1): "
            f"{verdict('functionality_preserving')}",
        ),
        (
            "Protection S",
            result["protection_strength"],
            f"well-protected (S > 50): {verdict('well_protected')}",
        ),
    ]
    lines = [
        "",
        f"{result['network']} on {result['config']['dataset']}, "
        f"{result['config']['passport']}, {result['config']['function']}: "
        "test accuracy in %",
        texts.table(
            [(name, f"{value:.2f}", note) for name, value, note in rows],
            right=(1,),
        ),
        f"The fakes' predictions have {result['mean_fake_entropy']:.2f} bits "
        f"of entropy, of at most {np.log2(result['num_classes']):.2f}.",
        f"{result['successful_fakes']} of {trials} fakes left S at 50 or "
        f"under: at most {high:.1f} % do (95 % interval).",
    ]
    return "\n".join(lines)
