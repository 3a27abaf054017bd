"""Which secrets are in what was stored, and archives to hide them in."""

import io
import zipfile

import h5py
import numpy as np

import keras_passport as kp


def secrets_of(model):
    """Every key, γ and β of a bound model."""
    found = {}
    for path, layer in kp.protected_layers(model).items():
        hidden = layer.hidden_parameters()
        for role, value in zip(("gamma", "beta"), hidden, strict=True):
            if value is not None:
                found[f"{path}/{role}"] = value
    return found


def correlates(secret, array, limit=0.99):
    """Whether some slice of an array is nearly a multiple of a secret."""
    secret = np.ravel(secret).astype("float64")
    array = np.asarray(array, "float64")
    if array.size < secret.size:
        return False
    array = np.atleast_1d(array)
    orders = [np.moveaxis(array, i, -1) for i in range(array.ndim)]
    for ordered in orders:
        windows = np.lib.stride_tricks.sliding_window_view(
            np.ravel(ordered), secret.size
        )
        for given, slices in (
            (secret, windows),
            (secret - secret.mean(), windows - windows.mean(1)[:, None]),
        ):
            lengths = np.linalg.norm(slices, axis=1) * np.linalg.norm(given)
            if np.any(np.abs(slices @ given) > limit * lengths + 1e-12):
                return True
    return False


def leaks_in(secrets, stored, folder, texts=()):
    """Which secrets stored arrays, and bytes of a folder's files, give away.

    Args:
        secrets: Dict from name to array.
        stored: Likewise.
        folder: Where files are.
        texts: More bytes that no file may hold.
    """
    leaks = [
        (secret, name)
        for secret, value in secrets.items()
        for name, array in stored.items()
        if correlates(value, array)
    ]
    for file in folder.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            leaks += [
                (secret, file.name)
                for secret, value in secrets.items()
                if np.asarray(value, "<f4").tobytes() in content
            ]
            leaks += [(text, file.name) for text in texts if text in content]
    return leaks


def arrays_of_h5(path):
    found = {}
    with h5py.File(path) as file:

        def visit(name, item):
            if isinstance(item, h5py.Dataset) and item.dtype.kind == "f":
                found[name] = item[()]
            for key, value in item.attrs.items():
                found[f"{name}@{key}"] = np.asarray(value)

        file.visititems(visit)
    return {k: v for k, v in found.items() if v.dtype.kind == "f"}


def keras_file(model, folder):
    model.save(folder / "model.keras")
    with zipfile.ZipFile(folder / "model.keras") as archive:
        archive.extractall(folder / "content")
    (folder / "model.keras").unlink()
    return arrays_of_h5(folder / "content" / "model.weights.h5")


def found(report):
    return {(leak.layer, leak.role) for leak in report.leaks}


def zipped(content, name="inside.npy"):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return stream.getvalue()
