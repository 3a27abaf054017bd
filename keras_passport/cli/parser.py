"""The command `keras-passport`: passports and models without a program.

    keras-passport inspect original.keras
    keras-passport protect --exact original.keras protected.keras owner.h5
    keras-passport unlock protected.keras owner.h5 trusted.keras

Its flags, its errors and its exit status; `commands` does the work.
"""

import argparse
import difflib
import inspect
import os
import re
import sys
import traceback

from absl import app, flags, logging
from absl.flags import argparse_flags

from keras_passport.cli import (
    commands,
    disputes,
    given,
    interrupts,
    pictures,
    streams,
)
from keras_passport.cli.commands import DONE, NO, PROGRAM
from keras_passport.errors import PassportError
from keras_passport.passports import derivation
from keras_passport.texts import shown

_MISTAKE, _BUG, _INTERRUPTED, _PIPE = 2, 3, 130, 141
# What Keras says of a backend that it does not know.
_NO_BACKEND = "Unable to import backend : "
# What stands for a file in help. A shell leaves "~" after a "=" as it is.
_FILES = {"FILE", "PATH", "MODEL", "PASSPORT", "FOLDER", "LEAK", "MODULE"}
_FILES |= {"OUT", "OUT.h5", "OUT.keras", "OWNER.h5"}
_STATUS = f"""\
exit status:
  {DONE}  done
  {NO}  the answer is no: leaks were found, or nothing can be protected
  {_MISTAKE}  a mistake in flags or files, told in one line on stderr; with
     --verbosity=1 the traceback comes before it
  {_BUG}  an error of this program itself, with its traceback

KERAS_BACKEND chooses the backend, as everywhere in Keras.
"""
# What `new` makes: of a protected model alone.
_DTYPES = ("uint8", "int8", "int32", "int64", "float16", "float32", "float64")


def run() -> None:
    """Runs the command with this process's arguments, and ends it."""
    # Before TensorFlow is imported: what it tells is not the user's concern.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    streams.prepare()
    app.run(main, flags_parser=parse)


def main(args: argparse.Namespace) -> int:
    """Runs a sub-command; says in one line what the user did wrong.

    Args:
        args: What `parse` returned.

    Returns:
        The exit status.
    """
    try:
        with interrupts.noticed():
            given.import_modules(getattr(args, "imports", None) or [])
            status = args.run(args) or DONE
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader has seen enough; Python would complain at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE
    except Exception as error:
        line = _users_mistake(error)
        if line is None or logging.get_verbosity() >= logging.DEBUG:
            for text in traceback.format_exc().splitlines():
                print(shown(text, limit=None), file=sys.stderr)
        if line is None:
            return _BUG
        print(f"{PROGRAM}: {line}", file=sys.stderr)
        return _MISTAKE


def _users_mistake(error) -> str | None:
    """The line to show for what the user can put right, or None."""
    line, _, more = str(error).partition("\n")
    if more and "Received: " not in line:
        # A name of several lines; what follows it is the point.
        line = str(error)
    line = shown(line, limit=None)
    if isinstance(error, OSError) and error.errno is not None:
        what = "a file"
        if error.filename is not None:
            what = f"'{shown(error.filename)}'"
        return f"Expected to read or write {what}. Received: {error.strerror}"
    if isinstance(error, ImportError):
        return f"Expected a package that is installed. Received: {line}"
    if line.startswith(_NO_BACKEND):
        return (
            "Expected KERAS_BACKEND (or keras.json) to name a backend, such as "
            f"tensorflow or jax. Received: {line.removeprefix(_NO_BACKEND)}"
        )
    # What this package raises on purpose begins so.
    if isinstance(error, (PassportError, OSError)) or line.startswith(
        "Expected "
    ):
        return line
    return None


def parse(argv: list[str]) -> argparse.Namespace:
    """Parses a command line, or ends the process with help or an error.

    Args:
        argv: The program's name, and its arguments.

    Returns:
        The flags; its `run` is the sub-command's function.
    """
    parser, known = _parser()
    words = argv[1:]
    if not words:
        parser.print_help(sys.stderr)
        sys.exit(_MISTAKE)
    if words[0] == "help":
        words = [*words[1:2], "--help"]
    if not words[0].startswith("-") and words[0] not in known:
        near = difflib.get_close_matches(words[0], known, 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        print(
            f"{PROGRAM}: Expected a command, one of {', '.join(known)}{hint} "
            f"Received: {shown(words[0])}",
            file=sys.stderr,
        )
        sys.exit(_MISTAKE)
    args, unknown = parser.parse_known_args(words)
    if unknown:
        command = known[args.command]
        near = difflib.get_close_matches(
            unknown[0], re.findall(r"--\w+", command.format_usage()), 1
        )
        hint = f" (did you mean {near[0]}?)" if near else ""
        command.error(f"{' '.join(unknown)}{hint}")
    flags.FLAGS.mark_as_parsed()
    if flags.FLAGS["verbosity"].using_default_value:
        # `app.run` would choose INFO, at which Keras and TensorFlow tell much.
        flags.FLAGS.verbosity = logging.WARNING
    return args


def _count(text: str) -> int:
    """The type of flags that count something."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


class _Parser(argparse_flags.ArgumentParser):
    """A parser whose errors are one line, and that has absl's `--verbosity`."""

    def __init__(self, **options):
        inherited = flags.FlagValues()
        inherited["verbosity"] = flags.FLAGS["verbosity"]
        super().__init__(
            add_help=False,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            inherited_absl_flags=inherited,
            **options,
        )
        # Not absl's --helpfull, whose flags are not this command's.
        self.add_argument(
            "-h", "--help", action="help", help="show this and exit"
        )

    def add_argument(self, *names, **options):
        if options.get("metavar") in _FILES:
            options.setdefault("type", os.path.expanduser)
        return super().add_argument(*names, **options)

    def parse_known_args(self, *args, **options):
        try:
            return super().parse_known_args(*args, **options)
        except flags.Error as error:  # Of absl's own flag, --verbosity.
            self.error(" ".join(str(error).split()))

    def error(self, message):
        self.exit(
            _MISTAKE,
            f"{PROGRAM}: Expected arguments as '{self.prog} --help' lists "
            f"them. Received: {shown(message, limit=None)}\n",
        )


def _parser() -> tuple[_Parser, dict[str, _Parser]]:
    """The parser of everything, and those of the sub-commands."""
    parser = _Parser(
        prog=PROGRAM,
        description="Protects Keras models with digital passports.",
        epilog=f"`{PROGRAM} COMMAND --help` tells more.\n\n{_STATUS}",
    )
    commands_ = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True
    )

    def add(function, example):
        text = inspect.getdoc(function) or ""  # python -OO has none.
        command = commands_.add_parser(
            function.__name__,
            help=text.partition("\n")[0],
            description=text,
            epilog=f"example:\n  {PROGRAM} {function.__name__} {example}",
        )
        command.set_defaults(run=function)
        return command

    def add_pictures(command):
        command.add_argument(
            "--images",
            metavar="A,B",
            help="identity images: pictures, or folders of them, brought to "
            "the model's input size as 0..255; or .npy files of images "
            "(n, ...) in the model's input domain",
        )
        command.add_argument(
            "--preprocessing",
            choices=pictures.MODES,
            help="what the model expects of pictures: 0..255 (none, the "
            "default), 0..1 (unit), -1..1 (tf), or as the ImageNet nets of "
            "torch and caffe",
        )
        command.add_argument(
            "--image_size",
            type=_count,
            metavar="N",
            help="pixels a side, where the model leaves them open",
        )

    def add_report_flags(command):
        command.add_argument(
            "--function",
            choices=("V1", "V2", "V3"),
            default="V3",
            help="which of scale and shift the passport hides: the scale "
            "(V1), the shift (V2), both (V3, the default)",
        )
        command.add_argument(
            "--insert",
            action="store_true",
            help="protect layers without a normalisation, too (VGG, AlexNet)",
        )
        command.add_argument(
            "--select",
            metavar="WHICH",
            help="kernel layers to protect, of those that can be: names with "
            "commas between them, or a regular expression found in them",
        )

    def add_overwrite(command):
        command.add_argument(
            "--overwrite",
            action="store_true",
            help="replace what is there",
        )

    def add_model(command, what="protected model, a .keras file"):
        command.add_argument("model", metavar="MODEL", help=what)
        command.add_argument(
            "--import",
            dest="imports",
            action="append",
            metavar="MODULE",
            help="of your own layers: a module's name, or a .py file; it is "
            "run before a model is loaded (repeat it for several)",
        )

    def add_passport(command):
        command.add_argument(
            "passport", metavar="PASSPORT", help="passport file (.h5)"
        )

    def add_out(command, what, name="OUT"):
        command.add_argument("out", metavar=name, help=what)
        add_overwrite(command)

    def add_json(command):
        command.add_argument(
            "--json", action="store_true", help="print JSON, not a table"
        )

    command = add(commands.inspect, "original.keras")
    add_model(command, "original or protected model, a .keras file")
    add_report_flags(command)
    add_json(command)

    command = add(
        commands.protect, "--exact original.keras protected.keras owner.h5"
    )
    add_model(command, "original model, a .keras file")
    add_out(command, "file to write", "OUT.keras")
    command.add_argument(
        "owner",
        metavar="OWNER.h5",
        nargs="?",
        help="passport file to write, with --exact",
    )
    command.add_argument(
        "--exact",
        action="store_true",
        help="of a trained model, one that gives out the same, untrained",
    )
    command.add_argument(
        "--noorder",
        action="store_true",
        help="with --exact: kernels' rows stay in their own order, which "
        "tells most signs of scales; calls cost less, and one may serve "
        "several passports",
    )
    add_pictures(command)
    add_report_flags(command)

    command = add(
        commands.new,
        "protected.keras owner.h5 --kind=fixed_image \\\n"
        "      --images=logo.png,portrait.jpg --reference=original.keras",
    )
    add_model(command)
    add_out(command, "passport file to write", "OUT.h5")
    kinds = derivation.MADE_KINDS
    command.add_argument("--kind", choices=kinds, default=kinds[0])
    add_pictures(command)
    command.add_argument(
        "--reference",
        metavar="FILE",
        help="trained model of the same architecture, for the image kinds",
    )
    command.add_argument(
        "--key_scaling",
        choices=derivation.KEY_SCALINGS,
        default=derivation.DEFAULT_KEY_SCALING,
        help="size of the keys; the default, %(default)s, hides them best",
    )

    add_passport(add(commands.show, "owner.h5"))

    command = add(commands.pack, "owner.h5 --spec=served --out=packed.npy")
    add_passport(command)
    command.add_argument(
        "--spec",
        required=True,
        metavar="PATH",
        help="passport_spec.json, or the SavedModel's folder that holds one",
    )
    command.add_argument(
        "--out", required=True, metavar="FILE", help="file to write, or -"
    )
    command.add_argument(
        "--format", choices=("npy", "json", "base64"), default="npy"
    )
    add_overwrite(command)

    command = add(commands.spec, "protected.keras --out=passport_spec.json")
    add_model(command)
    command.add_argument(
        "--out", default="-", metavar="FILE", help="not to standard output"
    )
    add_overwrite(command)

    command = add(
        commands.export, "protected.keras served --class_names=cat,dog"
    )
    add_model(command)
    add_out(command, "folder (saved_model) or file to write")
    command.add_argument(
        "--format",
        choices=("saved_model", "onnx", "litert"),
        default="saved_model",
    )
    command.add_argument(
        "--input_dtype",
        choices=_DTYPES,
        metavar="DTYPE",
        help="of the model's own inputs in a SavedModel, such as uint8",
    )
    command.add_argument(
        "--class_names",
        metavar="A,B",
        help="in the order of the outputs, or @FILE with one a line; they go "
        "into a SavedModel as labels.txt",
    )

    command = add(commands.unlock, "protected.keras owner.h5 trusted.keras")
    add_model(command)
    add_passport(command)
    add_out(command, "file to write", "OUT.keras")
    command.add_argument(
        "--nofold",
        dest="fold",
        action="store_false",
        help="keep the original's normalisation layers",
    )

    command = add(
        commands.evaluate,
        "protected.keras --passport=owner.h5 --data=test.npz",
    )
    add_model(command, "any model, a .keras file")
    command.add_argument(
        "--passport", metavar="FILE", help="of a protected model (.h5)"
    )
    command.add_argument(
        "--data", required=True, metavar="FILE", help="x and y, an .npz file"
    )
    command.add_argument("--batch_size", type=_count, default=32, metavar="N")

    command = add(commands.leaks, "owner.h5 public/ served/")
    add_passport(command)
    command.add_argument(
        "files", nargs="+", metavar="FILE", help="files and folders to search"
    )
    add_json(command)
    disputes.add_commands(add, add_model, add_passport, add_overwrite, _count)
    return parser, commands_.choices
