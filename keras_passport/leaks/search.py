"""`find_leaks`: searches what is published for what a passport keeps secret.

Two searches know nothing of each other. One looks for the secrets' own bytes
and printed digits, the other for arrays that correlate with a secret, however
they are scaled, shifted or rounded.
"""

import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping

from keras_passport.errors import PassportError
from keras_passport.hints import Model
from keras_passport.leaks import contents, scanned_files, versions
from keras_passport.leaks.report import Leak, LeakReport, NotExamined, Trace
from keras_passport.leaks.scan import Scan
from keras_passport.passports.passport import Passport, check_passport
from keras_passport.secrecy import SecretBytes, hidden, type_of
from keras_passport.texts import shown

__all__ = ["Leak", "LeakReport", "NotExamined", "Trace", "find_leaks"]

# A model's config is smaller.
_LARGEST_CONFIG = 2**26


def find_leaks(
    passport: Passport,
    paths: str | os.PathLike | Iterable[str | os.PathLike],
    model: Model = None,
    verbose: int = 0,
    secrets: Mapping[str, bytes] | None = None,
) -> LeakReport:
    """Searches files for a passport's maps, keys and hidden parameters.

    Reads `.keras`, HDF5, TensorFlow checkpoints, SavedModels and frozen
    graphs, ONNX (if `onnx` is installed), LiteRT, NumPy (structured, complex
    and object arrays too), JSON and other texts, whole and column by column
    or name by name, and pictures (with Pillow). Opens zip and tar archives,
    gzip, zlib, bz2, xz, lzma, lz4 and zstd (with their libraries), Base64,
    hexadecimal, UTF-16, UTF-32 and escaped text, in one another up to 8 deep,
    wherever they begin. Bytes of an unknown format (pickles, which are never
    loaded, and compilation caches among them) are taken for numbers of 16, 32
    and 64 bits. What is not examined, or not in every way, is in the report
    with the reason, and the report is then not clean: pipes, devices, links
    in a circle, sparse files, archives above the limits, damaged, encrypted
    and unknown compressed files.

    1. *Bytes.* No run of 16 bytes of the seed, a feature map, a key (as
       digested and as scaled, in every order of its axes) or a hidden
       parameter may occur, as float16, bfloat16, float32 or float64; nor 4
       consecutive values of a key or hidden parameter printed with 5 or more
       digits each. Runs of zeros and of few different values don't count.
    2. *Correlation.* No window of an array, in any order of its axes, may
       correlate with a key, a key's mean over its window, or a hidden
       parameter by more than chance. In an array of a kernel's shape, such as
       an optimizer's slots, neither may the leading left singular vectors.
    3. *Trace.* Kernels themselves are set aside: they hold γ and β by
       design, and what they show of keys is measured, not judged. A kernel is
       an array with the values of a protected layer's (in any order, up to
       float16's rounding), or one of such a shape in a layer's own place in a
       Keras file. So are arrays that are like γ or β as much as those of other
       keys would be. Trained filters are not symmetric, either: it is measured
       how many signs of γ they tell.

    The bound: the squared centred correlation of a fixed vector with n
    independent normal numbers is Beta(1/2, (n - 2) / 2) distributed, and
    exceeds t with a chance of at most (1 - t)^((n - 2) / 2). A key's elements
    are not independent, as neighbours in its window see nearly the same
    positions of the map; nor are hidden parameters, as they all come from one
    public kernel. Of a vector with independent parts of variances v_1 ≥ v_2 ≥
    ..., the chance is at most Π_(i ≥ 2) (1 + v_i / v_1 · t / (1 - t))^(-1/2),
    which is the same where they are equal (n - 1 of them, as centring takes
    one). A key's parts are its own principal components over the window, for
    every channel; those of a hidden parameter what the kernel makes of them.
    The bound of a comparison is the t at which this chance is 1e-6 over the
    number of all comparisons that were made
    (Bonferroni's, half of it for windows and half for singular vectors). A
    correlation must also hold without the eighth of the elements that make
    most of it: one outlier that meets another is no leak.

    4. *Folded kernels.* An array that is a protected kernel but for a factor
       per channel, as `unlock` and frozen exports have it, is divided by that
       kernel, and the factors are judged as an array of their own. γ/σ and
       what is folded into the bias are secrets like γ and β. Where rows are
       in a secret order, such an array has them in their own, and is a leak
       whatever the factors are: the original, an unlocked copy, the network
       before `hide_rows`. Filters of so few rows that chance makes them alike
       are left out.
    5. *Pictures.* No picture, nor array of a picture's shape, may be like an
       identity image or a map with 1 or 3 channels, in brightness and in its
       changes. No bound follows from chance there: the limits are such that
       no two of scikit-learn's 1,797 digits reach them.

    6. *Versions.* No two `.keras` files that the passport fits may differ
       along its keys: a key may lie in the plane of a layer's leading
       differences no more than by chance.

    Limits: a quantised kernel counts as any array. A depthwise or grouped
    kernel's slots are searched in windows alone. Files of an unknown format
    above 32 MiB are searched for bytes alone, which is said, and taken for
    numbers of 8 bits up to 64 KiB. Of passports of more than a million map
    elements every n-th run is looked for. Other encodings of text, such as
    Base32 and Base85, are not known. With decoupled gradients and large keys,
    leading singular vectors of slots show no keys: a clean report does not
    make an optimizer's state fit to be published.

    Time grows with the bytes (unpacked) times the number of layers; memory is
    bounded by about 1 GB beyond the passport, the model and the largest
    array. HDF5 files are read by a process that is ended if it gives no answer
    for 30 seconds; it ends by itself after two idle minutes.

    Args:
        passport: The owner's `Passport`.
        paths: A file or folder, or several.
        model: The protected model, whose kernels tell the hidden parameters.
            Defaults to all `.keras` files among `paths` that the passport
            fits.
        verbose: 1 to show a progress bar, 0 to be silent.
        secrets: Dict from names to more secrets to look for, 16 bytes or
            longer: a claim's (`ownership`), a licensor's (`licensing`).

    Returns:
        A `LeakReport`.

    Raises:
        FileNotFoundError: If a path does not exist.
        PassportError: If `passport` is none, or does not fit `model`; if one
            of `secrets` is no bytes, or shorter.

    Example:

    >>> report = kp.find_leaks(passport, "public/")
    >>> assert report.clean, report
    """
    check_passport(passport)
    if model is not None:
        passport.check(model)
    not_examined = {}

    def problem(path, place, reason):
        left = NotExamined(str(path), place, reason)
        not_examined[left] = None

    paths = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    files = scanned_files.files_under(
        paths,
        lambda path, reason: problem(path, "", reason),
    )
    if not files and not not_examined:
        # Of nothing nobody can say that it is clean.
        problem(shown(paths, 80), "", "there is no file in it")
    notes = []
    # Of one file there is no other version.
    several = sum(file.suffix == ".keras" for file in files) > 1
    named = _fitting(passport, files) if several or model is None else {}
    models = [model] if model is not None else list(named.values())
    if not models:
        notes.append(
            "no model: hidden parameters, folded kernels and the orders of "
            "hide_rows were not looked for"
        )
    scan = Scan(passport, models, notes, _texts(secrets))
    scan.found(versions.leaks_of(passport, named))
    progress = _Progress(files, verbose)
    for file in files:
        data = scanned_files.contents_of(
            file, lambda path, reason: problem(path, "", reason)
        )
        if data is not None:
            scan.examined["files"] += 1
            for part in contents.parts_of(
                file,
                data,
                lambda place, reason, file=file: problem(file, place, reason),
            ):
                scan.search(part, problem)
                scanned_files.release(part.data)
        progress.done(file)
    return scan.report(notes, not_examined)


class _Progress:
    """A bar that goes on with every file, by its size."""

    def __init__(self, files, verbose):
        self._sizes = {file: _size(file) for file in files} if verbose else {}
        self._bar = None
        if self._sizes:
            import keras

            total = sum(self._sizes.values())
            self._bar = keras.utils.Progbar(total, unit_name="byte")

    def done(self, file):
        if self._bar is not None:
            self._bar.add(self._sizes[file])


def _size(file):
    try:
        return max(1, file.stat().st_size)
    except OSError:
        return 1


def _texts(secrets) -> dict:
    """More secrets, by what they are to be called."""
    texts = hidden(dict(secrets or {}))
    for name, text in texts.items():
        if not isinstance(text, SecretBytes) or len(text) < 16:
            raise PassportError(
                f"Expected the secret '{shown(name)}' to be 16 bytes or more. "
                f"Received: a {type_of(text)}"
            )
    return texts


def _fitting(passport, files):
    """The models among files that the passport fits, by their names."""
    models = {}
    for file in files:
        if file.suffix == ".keras" and _may_be_protected(file):
            import keras

            try:
                model = keras.saving.load_model(file, compile=False)
                passport.check(model)
            # A damaged or foreign model may fail in any way.
            except Exception:
                continue
            models[str(file)] = model
    return models


def _may_be_protected(file) -> bool:
    """Whether a file is a model of this package's, and whole.

    Keras would load others for nothing, and damaged weights make the HDF5
    library run for ever.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            config = archive.getinfo("config.json")
            weights = archive.getinfo("model.weights.h5")
            if config.file_size > _LARGEST_CONFIG:
                return False
            if b"keras_passport" not in archive.read(config):
                return False
            with archive.open(weights) as content:
                while content.read(2**20):  # Its checksum is looked at.
                    pass
    except (OSError, KeyError, ValueError, RuntimeError, EOFError):
        return False
    except (zipfile.BadZipFile, NotImplementedError, zlib.error):
        return False
    return True
