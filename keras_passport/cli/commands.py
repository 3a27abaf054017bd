"""What each sub-command of `keras-passport` does.

A function per sub-command takes the parsed flags and returns an exit status,
or None for `DONE`; its docstring is what `--help` shows. A user's mistake is a
`ValueError`, or an `OSError`. Keras is imported by those that need a model.
"""

import base64
import contextlib
import json
import os
import pathlib
import sys

import numpy as np

import keras_passport as kp
from keras_passport import files, scores
from keras_passport.cli import given, pictures, targets
from keras_passport.cli.quiet import quiet
from keras_passport.texts import shown, table

PROGRAM = "keras-passport"
DONE, NO = 0, 1
_PRIVATE = 0o600
# What the image kinds need, and for what.
_NEEDED = {
    "images": "your pictures, or folders of them, with commas between them",
    "reference": "a trained model of the same architecture, such as the "
    "original, that turns them into feature maps",
}


def inspect(args) -> int:
    """Says what a passport protects of a model, or would, and why.

    MODEL is a file that Keras saved; nothing is written. The status is 1 if
    no layer of it can be protected.
    """
    model = given.load_model(args.model)
    report = kp.inspect(
        model, args.function, _selected(args, model), insert=args.insert
    )
    print(json.dumps(report.to_dict(), indent=2) if args.json else report)
    return DONE if report.protected else NO


def protect(args) -> None:
    """Writes a copy of a model that has passport layers.

    The copy, not compiled, has the original's weights. It MUST BE TRAINED,
    bound to a passport, before it is of any use: bind, calibrate(like=
    original), compile and fit, as in the README.

    With --exact it needs no training: filters get other signs and sizes, and
    OWNER.h5 a passport that is solved for, with which the copy gives out what
    the original does. All kernel layers are protected then. With --images its
    keys are made of your pictures, which says of them whose they are; what
    the pictures do not give is public offsets.
    """
    out = targets.new_file(args.out, args.overwrite, ".keras", args.model)
    of_exact = (args.exact, args.noorder, args.images, args.owner, *_how(args))
    if any(value not in (None, False) for value in of_exact):
        _protect_exactly(args, out)
        return
    model = given.load_model(args.model)
    select = _selected(args, model)
    report = kp.inspect(model, args.function, select, insert=args.insert)
    print(report)
    if not report.protected:
        raise ValueError(
            "Expected a model with a layer to protect; the table says why it "
            f"has none{'' if args.insert else ' (--insert may help)'}. "
            f"Received: '{shown(args.model)}'"
        )
    with quiet():
        protected = kp.protect(model, args.function, select, insert=args.insert)
    _save(protected, out)
    print(
        f"Wrote {shown(out)}. Next: make a passport ({PROGRAM} new), and "
        "train it."
    )


def _protect_exactly(args, out):
    """`protect --exact`: writes the passport too, before the copy."""
    if not args.exact or args.owner is None:
        raise ValueError(
            "Expected --exact and a file to write its passport to, OWNER.h5: "
            "one needs the other. Received: "
            f"{'no --exact' if not args.exact else 'no file'}"
        )
    if args.function != "V3" or args.insert:
        raise ValueError(
            "Expected neither --function nor --insert with --exact, which "
            "hides scale and shift of all kernel layers. Received: "
            f"{'--insert' if args.insert else f'--function={args.function}'}"
        )
    if args.images is None and any(value is not None for value in _how(args)):
        raise ValueError(
            "Expected --images with --preprocessing or --image_size, which "
            "say how pictures are read. Received: no --images"
        )
    owner = targets.new_file(
        args.owner, args.overwrite, None, args.model, makes_passport=True
    )
    targets.check_apart(out, owner)
    model = given.load_model(args.model)
    with quiet():
        protected, passport = kp.protect_trained(
            model,
            _selected(args, model),
            order=not args.noorder,
            images=None if args.images is None else _pictures(args, model),
        )
    print(protected.report)
    # A model whose passport could not be written would be of no use.
    passport.save(owner)
    _save(protected, out)
    print(
        f"Wrote {shown(owner)}, a secret, and {shown(out)}, which gives out "
        "with it what the original does. Keep the original to yourself."
    )
    if not args.noorder:
        with quiet():
            warning = given.first_seed_warning(model)
        if warning:
            print(warning)


def _how(args) -> tuple:
    """What is said of how pictures are read."""
    return args.preprocessing, args.image_size


def _pictures(args, model):
    """The identity images that --images names."""
    return pictures.read_images(
        [os.path.expanduser(path) for path in args.images.split(",")],
        scores.only_shape(model.input_shape),
        args.preprocessing,
        args.image_size,
    )


def new(args) -> None:
    """Makes a passport for a protected model: a secret, mode 0600.

    random_pattern is made of random numbers. fixed_image (one picture; two
    for V3) and random_image (two or more) are made of your pictures, which a
    trained --reference, such as the original, turns into feature maps.
    Randomness comes from the operating system: a seed is a secret, and no
    flag takes one.
    """
    out = targets.new_file(
        args.out,
        args.overwrite,
        None,
        args.model,
        args.reference,
        makes_passport=True,
    )
    of_images = args.kind != "random_pattern"
    for name in ("images", "reference", "preprocessing"):
        value = getattr(args, name)
        if value and not of_images:
            raise ValueError(
                f"Expected no --{name} for --kind={args.kind}, which is made "
                "of random numbers (--kind=fixed_image or random_image takes "
                f"it). Received: --{name}={shown(value)}"
            )
        if of_images and not value and name != "preprocessing":
            raise ValueError(
                f"Expected --{name} for --kind={args.kind}: {_NEEDED[name]}. "
                "Received: none"
            )
    model = given.load_model(args.model)
    if of_images:
        passport = getattr(kp.Passport, args.kind)(
            model,
            _pictures(args, model),
            reference=given.load_model(args.reference),
            key_scaling=args.key_scaling,
        )
    else:
        takes = scores.only_shape(model.input_shape)
        if args.image_size is None and None in tuple(takes)[1:]:
            raise ValueError(
                "Expected --image_size, since the model leaves its input size "
                f"open. Received: {takes}"
            )
        passport = kp.Passport.random_pattern(
            model, key_scaling=args.key_scaling, spatial_size=args.image_size
        )
    passport.save(out)
    print(f"Wrote {shown(out)}, a secret. Fingerprint: {passport.fingerprint}")


def show(args) -> None:
    """Says what a passport is for; shows no value of it.

    Its fingerprint can be published: it tells nothing of the passport, and
    proves later that you had it.
    """
    passport = kp.Passport.load(args.passport)
    roles = passport.function.roles
    shapes = {
        path: geometry.key_shape
        for path, geometry in passport.geometries.items()
    }
    size = len(roles) * sum(
        geometry.key_size for geometry in passport.geometries.values()
    )
    geometries = passport.geometries.values()
    ordered = sum(sum(geometry.ordered_rows) for geometry in geometries)
    about = [
        ("kind", passport.kind),
        ("function", passport.function.name),
        ("key_scaling", passport.key_scaling),
        ("size", f"{size:,} numbers in {len(shapes)} layers"),
        ("fingerprint", passport.fingerprint),
    ]
    if ordered:
        numbers = sum(geometry.order_size for geometry in geometries)
        about.insert(-1, ("order", f"of {ordered:,} rows, {numbers:,} numbers"))
    rows = [
        (path, " ".join(roles), "x".join(map(str, shape)))
        for path, shape in shapes.items()
    ]
    print(table(about))
    print(f"\n{table([('layer', 'hides', 'key'), *rows])}")


def pack(args) -> None:
    """Writes a passport as the numbers that an exported model takes.

    --format=npy is a float32 array (1, K); json the same as nested lists, for
    TensorFlow Serving's REST requests; base64 the K numbers as little-endian
    float32. All are secrets, so the file has mode 0600. --out=- writes to
    standard output.
    """
    if args.out != "-":
        targets.new_file(
            args.out, args.overwrite, None, args.passport, args.spec
        )
    packed = kp.Passport.load(args.passport).pack(args.spec)
    if args.format == "npy":
        _write(args.out, lambda file: np.save(file, packed), _PRIVATE)
        return
    if args.format == "json":
        text = json.dumps(packed.tolist())
    else:
        text = base64.b64encode(packed.astype("<f4").tobytes()).decode()
    _write(args.out, lambda file: file.write(f"{text}\n".encode()), _PRIVATE)


def spec(args) -> None:
    """Says how a passport is packed for a protected model, as JSON.

    It holds no secret; exported models have it with them.
    """
    if args.out != "-":
        targets.new_file(args.out, args.overwrite, None, args.model)
    model = given.load_model(args.model)
    text = json.dumps(kp.passport_spec(model), indent=2)
    _write(args.out, lambda file: file.write(f"{text}\n".encode()))


def export(args) -> None:
    """Exports a protected model with the passport as an input.

    No secret is in what is written. A SavedModel's signature takes the
    model's inputs, as --input_dtype if given, and `passport`.
    """
    saved_model = args.format == "saved_model"
    for name in ("input_dtype", "class_names"):
        if getattr(args, name) and not saved_model:
            raise ValueError(
                f"Expected --{name} for --format=saved_model alone. "
                f"Received: --format={args.format}"
            )
    if saved_model:
        out = pathlib.Path(args.out)
        files.check_saved_model(out, args.overwrite, "--overwrite")
    else:
        out = targets.new_file(args.out, args.overwrite, None, args.model)
    model = given.load_model(args.model)
    options = {"overwrite": args.overwrite}
    if saved_model:
        options["input_dtype"] = args.input_dtype
        options["class_names"] = _class_names(args.class_names, model)
    getattr(kp, f"export_{args.format}")(model, out, **options)
    print(
        f"Wrote {shown(out)}. Its input `passport` is what `{PROGRAM} pack` "
        "writes."
    )


def unlock(args) -> None:
    """Writes an ordinary Keras model that needs no passport.

    What the passport hides is folded into its kernels, or with --nofold kept
    in normalisation layers, as in the original. It is a secret,
    for machines that you trust, and has mode 0600.
    """
    out = targets.new_file(args.out, args.overwrite, ".keras", args.model)
    passport = kp.Passport.load(args.passport)
    model = given.load_model(args.model)
    _save(kp.unlock(model, passport, fold=args.fold), out, _PRIVATE)
    print(f"Wrote {shown(out)}, a secret: it runs without a passport.")


def evaluate(args) -> None:
    """Says how many of a file's examples a model classifies correctly.

    --data is a file of numpy.savez: `x`, as the model takes it, and `y`, the
    classes' numbers (or one-hot rows). A protected model needs --passport, an
    original or unlocked one has none. Scores that are not finite, or labels
    that no class has, are an error.
    """
    passport = kp.Passport.load(args.passport) if args.passport else None
    model = given.load_model(args.model)
    if passport is not None:
        kp.bind(model, passport)
    elif kp.protected_layers(model):
        raise ValueError(
            f"Expected --passport, since '{shown(args.model)}' is protected. "
            "Received: none"
        )
    x, y = given.fitting_examples(args.data, model)
    predicted = scores.finite_classes_of(
        scores.predict(model, x, args.batch_size), _whose(x, args)
    )
    right = int(np.sum(predicted == y))
    print(f"accuracy {right / len(x):.4f} ({right:,} of {len(x):,})")


def leaks(args) -> int:
    """Searches files for a passport's secrets before you publish them.

    FILES are files or folders of any kind. The status is 1 if something of
    the passport is found in them, or if something was not examined.
    """
    passport = kp.Passport.load(args.passport)
    # What is found goes to the output, how far it is to the terminal.
    verbose = int(sys.stderr.isatty())
    with quiet():
        import keras  # noqa: F401  # Its greeting is all that is dropped.
    with contextlib.redirect_stdout(sys.stderr):
        report = kp.find_leaks(passport, args.files, verbose=verbose)
    print(json.dumps(report.to_dict(), indent=2) if args.json else report)
    return DONE if report.clean else NO


def _whose(x, args) -> str:
    """Whose scores they are, for the message, and what may be the cause."""
    name = f"'{shown(args.model)}'"
    if x.dtype.kind in "fc" and not np.isfinite(x).all():
        return f"{name} (x in --data is not finite itself)"
    return name


def _selected(args, model):
    """What `select=` is given for the flag --select."""
    if args.select is None:
        return None
    report = kp.inspect(model, args.function, insert=True)
    kernels = [row.path for row in report.rows if row.role == "kernel"]
    return given.selection(args.select, kernels)


# Files ----------------------------------------------------------------------


def _save(model, path, mode=None):
    with files.replacing(path, mode) as temporary:
        model.save(temporary, include_optimizer=False)


def _write(path, write, mode=None):
    """Calls `write` with standard output for "-", or a file to be."""
    if path == "-":
        write(sys.stdout.buffer)
        return
    with files.replacing(path, mode) as temporary, open(temporary, "wb") as f:
        write(f)
    print(f"Wrote {shown(path)}{', a secret' if mode else ''}.")


def _lines(path) -> list[str]:
    try:
        return pathlib.Path(path).read_text("utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(
            f"Expected '{shown(path)}' to be text in UTF-8. Received: a file "
            f"{pictures.ANOTHER}"
        ) from None


def _class_names(given, model) -> list[str] | None:
    if given is None:
        return None
    names = given.split(",")
    if given.startswith("@"):
        names = _lines(os.path.expanduser(given[1:]))
    outputs = scores.only_shape(model.output_shape)
    if isinstance(outputs, tuple) and len(names) != outputs[-1]:
        raise ValueError(
            f"Expected {outputs[-1]} --class_names, one per output. "
            f"Received: {len(names)}"
        )
    return names
