"""Sub-commands for owners, licensees and judges: who owns what, who leaked it.

Like `commands`, a function per sub-command; its docstring is what `--help`
shows. `add_commands` gives them their flags.
"""

import contextlib
import json
import os
import pathlib

import keras_passport as kp
from keras_passport import files, licensing, ownership, sealed
from keras_passport.cli import given, targets
from keras_passport.cli.commands import DONE, NO
from keras_passport.cli.quiet import quiet
from keras_passport.texts import shown

_PRIVATE = 0o600
# Of accuracy, that a licence may cost.
_POINTS = 0.1


def claim(args) -> None:
    """Claims a network before it is released: a commitment, and its opening.

    CLAIM.json tells nothing and is to be published, where others see when: a
    time-stamp of RFC 3161, a transparency log, a signed commit. The opening
    is a secret until a dispute; keep it with the passport.
    """
    read = (args.model, args.passport, args.reference, args.secret)
    for path in (args.out, args.opening):
        targets.new_file(path, args.overwrite, None, *read)
        # A claim without its opening, or the other way round, is worthless.
        files.check_target(path)
    targets.check_apart(args.out, args.opening)
    passport = kp.Passport.load(args.passport)
    model = given.load_model(args.model)
    made, opening = ownership.claim(
        passport,
        owner=args.owner,
        model=model,
        reference=_model_or_none(args.reference),
        secret=_secret(args.secret),
    )
    opening.save(args.opening)
    made.save(args.out)
    print(f"Wrote {shown(args.out)}, to be published: {made.commitment}")
    print(f"Wrote {shown(args.opening)}, a secret that opens it.")


def record(args) -> None:
    """Writes down what an owner expects of a network at release.

    That is its accuracy, and how it falls as noise spoils the passport. It is
    a secret until a dispute; its hash may be published with the claim.
    """
    read = (args.model, args.passport, args.data)
    targets.new_file(args.out, args.overwrite, None, *read)
    model = given.load_model(args.model)
    written = ownership.record(
        model,
        kp.Passport.load(args.passport),
        given.fitting_examples(args.data, model),
        repeats=args.repeats,
    )
    written.save(args.out)
    print(f"accuracy {written.accuracy:.4f} of {written.examples} examples")
    for level, mean in zip(
        written.noise["fractions"], written.means, strict=True
    ):
        print(f"  noise on {level:.2f} of the passport: {mean:.4f}")
    print(f"Wrote {shown(args.out)}. Its hash: {written.commitment}")


def verify(args) -> int:
    """Examines a claim against a suspect network.

    FOLDER holds the suspect (suspect.keras, or variables in suspect.npz), the
    judge's test data (data.npz: x and y), and what the claimant brings:
    claim.json, opening.json, passport.h5, published.keras; if there are any,
    reference.keras, record.json, dated.txt. foreign/ may hold independent
    networks, and is to hold public ones that both may have started from;
    rivals/NAME/ what others bring. The same folder gives the same report, byte
    for byte. The status is 1 if nothing is shown.
    """
    folder = pathlib.Path(args.folder)
    for path in (args.out, args.page):
        if path:
            targets.new_file(path, args.overwrite, None, *folder.rglob("*"))
    targets.check_apart(args.out, args.page)
    foreign = sorted(folder.glob("foreign/*.keras"))
    rivals = sorted(p for p in folder.glob("rivals/*") if p.is_dir())
    evidence = _evidence(folder)
    report = ownership.verify(
        _suspect(folder),
        evidence,
        given.fitting_examples(folder / "data.npz", evidence.published),
        rivals=[_evidence(rival) for rival in rivals],
        foreign=[given.load_model(path) for path in foreign],
        suspect_dated=args.suspect_dated,
        nulls=args.nulls,
        fakes=args.fakes,
        seed=args.draws,
    )
    if args.out:
        report.save(args.out)
    if args.page:
        ownership.page.save(report, args.page, evidence.passport)
    print(report.to_json().decode().strip() if args.json else report)
    return DONE if report.verdict != "not shown" else NO


def license(args) -> None:
    """Makes a licensee's key of an owner's passport, and writes it down.

    The key runs the network as the passport does, and names its holder if it
    leaks. LEDGER and the secret, which is made if there is none, stay with
    the owner. With --data, its accuracy is within --points of the passport's.
    With --again it is one that the ledger has already, for whoever lost it.
    """
    read = (args.model, args.passport, args.data, args.ledger, args.secret)
    targets.new_file(args.out, args.overwrite, None, *read)
    targets.check_apart(args.out, args.ledger, args.secret)
    if args.again and args.data:
        raise ValueError(
            "Expected either --again, of a licence as it was issued, or "
            f"--data to judge a new one by. Received: --data={args.data}"
        )
    if not (args.points is None or (args.data and args.points >= 0)):
        raise ValueError(
            "Expected --points of 0 or more, and --data to judge by. "
            f"Received: --points={args.points}, --data={args.data}"
        )
    passport = kp.Passport.load(args.passport)
    model = given.load_model(args.model)
    passport.check(model)
    data = given.fitting_examples(args.data, model) if args.data else None
    if not os.path.exists(args.secret) and os.path.exists(args.ledger):
        raise ValueError(
            f"Expected the secret of '{shown(args.ledger)}', which exists. "
            f"Received: --secret={shown(args.secret)}, no such file"
        )
    # Made only once nothing is wrong with what the user has.
    secret = _secret(args.secret, create=True)
    ledger = licensing.Ledger(args.ledger, secret)
    licensor = licensing.Licensor(passport, model, secret)
    accept = None
    points = _POINTS if args.points is None else args.points
    if data:
        judge = kp.attacks.fake.Judge(model, *data)
        expected, _ = judge(passport.fitted(model).packed(), is_valid=True)

        def accept(licence):
            accuracy, _ = judge(licence.packed())
            # Fractions of a count of examples are not quite so in binary.
            return abs(accuracy - expected) <= points / 100 + 1e-9

    if args.again:
        licence = licensor.again(args.licensee, ledger)
    else:
        licence = licensor.issue(args.licensee, ledger, accept)
    licence.save(args.out)
    print(
        f"Wrote {shown(args.out)}, {shown(args.licensee)}'s alone. "
        f"{len(ledger.licensees)} licences so far; up to "
        f"{licensing.capacity(licensor.positions, len(ledger.licensees))} "
        "who mix γ and β of theirs are found again."
    )


def trace(args) -> int:
    """Says whose licence a leak is.

    LEAK is a passport file, packed keys (.npy), γ and β by layer (.npz, with
    names such as conv/gamma), or an unlocked model (.keras). The status is 1
    if it names nobody.
    """
    secret = _secret(args.secret)
    passport = kp.Passport.load(args.passport)
    model = given.load_model(args.model)
    licensor = licensing.Licensor(passport, model, secret)
    found = licensor.trace(
        _leak(args.leak), licensing.Ledger(args.ledger, secret)
    )
    print(json.dumps(found.to_dict(), indent=2) if args.json else found)
    return DONE if found.licensees else NO


def add_commands(add, add_model, add_passport, add_overwrite, count) -> None:
    """Adds the flags of these commands to a parser.

    Args:
        add: Function from a command's function and an example to its parser.
        add_model: Adds a model's argument to a parser.
        add_passport: Adds a passport's.
        add_overwrite: Adds `--overwrite`.
        count: Type of a number above 0.
    """

    def add_secret(command, required, more=""):
        command.add_argument(
            "--secret",
            required=required,
            metavar="FILE",
            help=f"file of the 32 bytes of a secret{more}",
        )

    def add_out(command, what):
        command.add_argument("out", metavar="OUT", help=what)
        add_overwrite(command)

    command = add(
        claim, "protected.keras owner.h5 claim.json --owner='Ada Ltd'"
    )
    add_model(command)
    add_passport(command)
    add_out(command, "claim to write, to be published")
    command.add_argument("--owner", required=True, metavar="NAME")
    command.add_argument(
        "--opening",
        default="opening.json",
        metavar="FILE",
        help="file to write, a secret (default: %(default)s)",
    )
    command.add_argument(
        "--reference",
        metavar="FILE",
        help="network that the passport's images went through",
    )
    add_secret(
        command, False, ", if signs of γ were made of one; else a new one"
    )

    command = add(
        record, "protected.keras owner.h5 record.json --data=test.npz"
    )
    add_model(command)
    add_passport(command)
    add_out(command, "record to write, a secret")
    command.add_argument("--data", required=True, metavar="FILE")
    command.add_argument("--repeats", type=count, default=5, metavar="N")

    command = add(verify, "dispute/ --out=report.json --page=report.html")
    command.add_argument("folder", metavar="FOLDER")
    command.add_argument("--out", metavar="FILE", help="JSON to write")
    command.add_argument("--page", metavar="FILE", help="HTML to write")
    add_overwrite(command)
    command.add_argument("--json", action="store_true")
    command.add_argument(
        "--suspect_dated",
        metavar="DATE",
        help="since when the suspect is known (ISO)",
    )
    command.add_argument("--nulls", type=count, default=1000, metavar="N")
    command.add_argument("--fakes", type=count, default=1000, metavar="N")
    command.add_argument(
        "--draws",
        type=int,
        default=0,
        metavar="N",
        help="which nulls are drawn: any whole number of the judge's",
    )
    command.add_argument(
        "--import", dest="imports", action="append", metavar="MODULE"
    )

    command = add(
        license,
        "protected.keras owner.h5 bob.h5 --licensee='Bob & Co' \\\n"
        "      --ledger=ledger.jsonl --secret=licensing.secret",
    )
    add_model(command)
    add_passport(command)
    add_out(command, "licensee's passport to write")
    command.add_argument("--licensee", required=True, metavar="NAME")
    command.add_argument("--ledger", required=True, metavar="FILE")
    command.add_argument(
        "--data",
        metavar="FILE",
        help="test data (.npz: x and y) to judge the licence by",
    )
    command.add_argument(
        "--points",
        type=float,
        metavar="P",
        help="by how much accuracies on --data may differ "
        f"(default: {_POINTS})",
    )
    command.add_argument(
        "--again",
        action="store_true",
        help="make a licence again that the ledger has",
    )
    add_secret(command, True, "; made if there is none")

    command = add(
        trace,
        "protected.keras owner.h5 leaked.h5 --ledger=ledger.jsonl \\\n"
        "      --secret=licensing.secret",
    )
    add_model(command)
    add_passport(command)
    command.add_argument("leak", metavar="LEAK")
    command.add_argument("--ledger", required=True, metavar="FILE")
    add_secret(command, True)
    command.add_argument("--json", action="store_true")


def _evidence(folder):
    with quiet():
        evidence = ownership.Evidence  # Which imports Keras.
    optional = {}
    if (folder / "reference.keras").exists():
        optional["reference"] = given.load_model(folder / "reference.keras")
    if (folder / "record.json").exists():
        optional["record"] = ownership.Record.load(folder / "record.json")
    if (folder / "dated.txt").exists():
        dated = (folder / "dated.txt").read_bytes()
        optional["dated"] = dated.decode(errors="replace").strip()
    return evidence(
        claim=ownership.Claim.load(folder / "claim.json"),
        opening=ownership.claims.Opening.load(folder / "opening.json"),
        passport=kp.Passport.load(folder / "passport.h5"),
        published=given.load_model(folder / "published.keras"),
        **optional,
    )


def _suspect(folder):
    if (folder / "suspect.npz").exists():
        return given.arrays(folder / "suspect.npz")
    return given.load_model(folder / "suspect.keras")


def _leak(path):
    suffix = pathlib.Path(path).suffix
    if suffix == ".keras":
        return given.load_model(path)
    if suffix == ".npy":
        return given.array(path)
    if suffix == ".npz":
        found: dict = {}
        for name, values in given.arrays(path).items():
            layer, _, role = name.rpartition("/")
            found.setdefault(layer, {})[role] = values
        return {
            layer: (values.get("gamma"), values.get("beta"))
            for layer, values in found.items()
        }
    return kp.Passport.load(path)


def _model_or_none(path):
    return given.load_model(path) if path else None


def _secret(path, create: bool = False) -> bytes | None:
    if path is None:
        return None
    if create and not os.path.exists(path):
        # Another process may have made one: then it is that one.
        with contextlib.suppress(FileExistsError):
            files.write_new(path, ownership.new_secret(), _PRIVATE)
    secret = sealed.read(path, "secret")
    expected = ownership.claim_secret.SECRET_BYTES
    if len(secret) != expected:
        raise ValueError(
            f"Expected {expected} bytes of a secret in '{shown(path)}'. "
            f"Received: {len(secret)}"
        )
    return secret
