"""What each step of a verification measures, and against which nulls."""

import dataclasses

import numpy as np
from scipy import stats

from keras_passport import audit
from keras_passport.attacks.fake import scaling_of
from keras_passport.errors import PassportError
from keras_passport.layers.protected import protected_layers
from keras_passport.models import exact_images
from keras_passport.ownership import networks
from keras_passport.ownership.alignment import align, similarity
from keras_passport.ownership.claim_secret import SECRET_BYTES, Signature
from keras_passport.ownership.report import Step
from keras_passport.passports import remaking
from keras_passport.passports.derivation import (
    FAKE,
    PASSPORT,
    choices,
    count_images,
    images_hash,
)
from keras_passport.passports.passport import Passport
from keras_passport.texts import shown

# A binomial chance as small as this is no accident.
SIGNS_P = 1e-9
# Mean cosine of matched filters: foreign networks reach about 0.3 to 0.6 where
# filters have few elements, fine-tuned and pruned ones stay over 0.8.
KERNELS = 0.7
# Standard deviations of the fakes' accuracies by which a passport must be above
# their mean. Who tries passports until one is lucky gets further than a normal
# distribution says: 5 with 400 of them on a small network.
FAKES_DEVIATIONS = 10.0
# The chance that few fakes may leave of being spread less than others are.
FAKES_P = 1e-9
# What a network may lose before the passport no longer counts as its own.
ACCURACY_LOST = 0.1
NOISE_GAP = 0.15
# Gaussian kernels, searched as a suspect's are.
DRAWN_NETWORKS = 30
# Of the inputs of fakes, where a model leaves it open.
_SIZE = 32


def commitment(evidence, passport) -> Step:
    """C recomputed from its opening; passport, network and record against it.

    A network that is not the one that was committed to is anybody's: its
    filters' signs can be made to fit a claim of before it was trained.
    """
    opens = evidence.opening.claim() == evidence.claim
    differing = evidence.opening.check(
        passport, evidence.reference, evidence.published
    )
    record, opening = evidence.record, evidence.opening
    if record is not None and (record.fingerprint, record.kernels) != (
        opening.fingerprint,
        opening.kernels,
    ):
        differing.append("record")
    if not opens:
        text = "the opening is of another claim"
    elif differing:
        text = f"not what was committed to: {', '.join(differing)}"
    else:
        text = "the claim opens, and it is of this passport and network"
    return Step("commitment", opens and not differing, text)


def provenance(evidence, passport) -> Step:
    """Choices and maps made anew from the seed, the images, the reference."""
    name = "provenance"
    follows = evidence.opening.seed_follows
    source = "the claim's secret" if follows else "the seed committed to"
    if passport.kind in ("feature_maps", "solved"):
        what = "solved keys" if passport.kind == "solved" else "given maps"
        return Step(
            name,
            None,
            f"{what} follow from no image: what speaks is the commitment, "
            "its date and the signs",
        )
    if passport.kind == "random_image" and not _choices_follow(passport):
        return Step(name, False, "layers take other images than chosen")
    try:
        if passport.kind == "offset_image":
            exact_images.check(
                passport.fitted(evidence.published),
                evidence.published,
                evidence.reference,
            )
        else:
            remaking.check(passport, evidence.published, evidence.reference)
    except PassportError as error:
        return Step(
            name,
            False,
            f"maps made anew are not the passport's: {shown(error)}",
        )
    what = (
        "patterns"
        if passport.kind == "random_pattern"
        else "images' maps through the reference"
    )
    return Step(name, True, f"keys made anew from {what} and {source}")


def _choices_follow(passport) -> bool:
    count = count_images(passport.images)
    hashed = images_hash(passport.images)
    roles = passport.function.roles
    return all(
        {role: getattr(entry, f"{role}_image") for role in roles}
        == dict(choices(passport.seed, PASSPORT, hashed, count, path, roles))
        for path, entry in passport.layers.items()
    )


def kernels(forms, matches, foreign, seed) -> Step:
    """How much of the published kernels is in the suspect.

    Args:
        forms: Lists of `KernelLayer`s of the published network, one for each
            way to read it; what a null is most like counts, too.
        matches: The suspect's, to the form that it is most like.
        foreign: Independently trained networks, as `networks.read` takes
            them.
        seed: Of the networks that are drawn.
    """
    filters = sum(layer.filters for layer in forms[0])
    figure = similarity(matches, filters)
    nulls = [networks.read(network) for network in foreign]
    nulls += [
        _drawn(forms[0], [seed, number]) for number in range(DRAWN_NETWORKS)
    ]
    nulls = [
        max(similarity(align(owners, null), filters) for owners in forms)
        for null in nulls
    ]
    threshold = max(KERNELS, *nulls)
    return Step(
        "kernels",
        figure >= KERNELS and figure > max(nulls),
        f"of {filters} filters, mean cosine with the suspect's; nulls are "
        f"{len(nulls) - DRAWN_NETWORKS} independent networks and "
        f"{DRAWN_NETWORKS} drawn ones",
        figure,
        threshold,
        (1 + sum(null >= figure for null in nulls)) / (1 + len(nulls)),
        max(nulls),
        len(nulls),
    )


def _drawn(owners, seed):
    rng = np.random.default_rng(seed)
    return [
        dataclasses.replace(
            layer,
            kernel=rng.normal(size=layer.kernel.shape),
            gamma=None,
        )
        for layer in owners
    ]


def signed_paths(passport) -> dict[str, str]:
    """The paths that layers had when their signs were drawn, by those now.

    Args:
        passport: The owner's, under the published model's paths.
    """
    return {path: e.origin or path for path, e in passport.layers.items()}


def signs(opening, found: dict, nulls: int, seed: int, source: str) -> Step:
    """Bits of the signature that agree with the signs of γ.

    Args:
        opening: Of the claim.
        found: Dict from the path that a layer was signed under to the signs
            that γ has, `(channels,)`.
        nulls: How many foreign secrets to try.
        seed: Of those.
        source: Where the signs come from.
    """
    name = "signs"
    if not found:
        return Step(name, None, "the suspect shows no γ")
    agreeing, total = _agreement(opening.signature, found)
    foreign = np.random.default_rng([seed, 1])
    tried = [
        _agreement(
            Signature(foreign.bytes(SECRET_BYTES), opening.owner), found
        )[0]
        for _ in range(nulls)
    ]
    chance = float(stats.binom.sf(agreeing - 1, total, 0.5))
    needed = int(stats.binom.isf(SIGNS_P, total, 0.5)) + 1
    most = max(tried, default=0)
    return Step(
        name,
        chance <= SIGNS_P and agreeing > most,
        f"{agreeing} of {total} bits agree with the signs of γ ({source})",
        agreeing / total,
        min(needed, total) / total,
        chance,
        most / total,
        len(tried),
    )


def _agreement(signature, found) -> tuple[int, int]:
    agreeing = total = 0
    for path, values in found.items():
        bits = np.asarray(signature(path, len(values)))
        agreeing += int(np.sum(bits == values))
        total += len(values)
    return agreeing, total


def signs_of(matches, model, passport, protected) -> tuple[dict, str]:
    """The signs that γ has in the owner's order, layer by layer.

    Args:
        matches: The suspect's.
        model: The owner's network with the suspect's kernels.
        passport: The owner's.
        protected: Paths of the owner's passport layers.

    Returns:
        Tuple of a dict from path to signs, and of where they come from.
    """
    told = [match for match in matches if match.path in protected]
    if all(
        match.found.gamma is not None or match.found.mean is None
        for match in told
    ):
        is_folded = all(match.found.gamma is None for match in told)
        return (
            {match.path: match.gamma_signs for match in told},
            "folded into its kernels" if is_folded else "the suspect's own",
        )
    if "gamma" not in passport.function.roles:
        return {}, ""
    made = {}
    rows = passport.rows()
    matched = {match.path for match in matches}
    for path, layer in protected_layers(model).items():
        if path not in matched:
            continue
        gamma, _ = layer.hidden_parameters(rows[path])
        made[path] = np.where(gamma < 0, -1.0, 1.0)
    return made, "F of its kernels and the passport"


def passport_works(judge, model, passport, record, fakes, seed) -> Step:
    """Accuracy with F(W, p) for the suspect's hidden parameters.

    Args:
        judge: Of `model` on the judge's data.
        model: The owner's network with the suspect's kernels.
        passport: The owner's.
        record: The owner's; `None` for none.
        fakes: How many foreign passports to try.
        seed: Of those.
    """
    accuracy, _ = judge(passport.packed())
    drawn = np.random.default_rng([seed, 2])
    tried = [
        judge(
            Passport.random_pattern(
                model,
                seed=drawn.bytes(SECRET_BYTES),
                key_scaling=scaling_of(passport),
                domain=FAKE,
                spatial_size=_SIZE if _is_open(model) else None,
            ).packed()
        )[0]
        for _ in range(fakes)
    ]
    best = max(tried)
    threshold = max(best, _above_luck(tried, len(judge)))
    if record is not None:
        threshold = max(threshold, record.accuracy - ACCURACY_LOST)
    return Step(
        "passport",
        accuracy > best and accuracy >= threshold,
        "accuracy under F(W, p) on the judge's examples"
        + (
            "" if record is None else f"; the record says {record.accuracy:.4f}"
        ),
        accuracy,
        threshold,
        (1 + sum(fake >= accuracy for fake in tried)) / (1 + fakes),
        best,
        fakes,
    )


def _above_luck(accuracies, examples) -> float:
    """What no foreign passport reaches, if they spread as those tried do.

    Args:
        accuracies: Of the foreign passports that were tried.
        examples: How many each was judged on, which alone makes them differ.
    """
    count, mean = len(accuracies), float(np.mean(accuracies))
    # Of few examples none may be right by chance alone (Laplace).
    expected = (mean * examples + 1) / (examples + 2)
    drawn = (expected * (1 - expected) / examples) ** 0.5
    spread = max(float(np.std(accuracies, ddof=1)), drawn)
    # Student's, of one more draw.
    few = float(stats.t.isf(FAKES_P, count - 1)) * (1 + 1 / count) ** 0.5
    return mean + max(FAKES_DEVIATIONS, few) * spread


def _is_open(model) -> bool:
    """Whether a model leaves its inputs' size open."""
    return any(None in tensor.shape[1:-1] for tensor in model.inputs)


def noise(judge, model, passport, data, record) -> tuple[Step, dict]:
    """The noise curve beside the record's (Section 3.2, step 3).

    Both are in relation to the accuracy without noise; they agree if their
    means differ by at most 0.15 and three standard errors at every level. How
    much draws differ is what the judge has seen, not what a record says.
    """
    measured = audit.accuracy_under_noise(
        model,
        passport,
        data,
        fractions=record.noise["fractions"],
        scale=record.noise["scale"],
        replace=record.noise["replace"],
        repeats=len(record.noise["accuracies"][0]),
        seed=record.noise["seed"],
        judge=judge,
    )["accuracies"]
    means = np.mean(measured, axis=1)
    deviations = np.std(measured, axis=1, ddof=1)
    draws = len(measured[0])
    expected = record.means / max(record.means[0], 1e-9)
    found = means / max(means[0], 1e-9)
    error = deviations / max(means[0], 1e-9) * np.sqrt(2 / draws)
    gaps = np.abs(found - expected) - 3 * error
    gap = float(np.max(gaps))
    curves = {
        "levels": [float(level) for level in record.noise["fractions"]],
        "recorded": [float(mean) for mean in record.means],
        "recorded_deviation": [float(d) for d in record.deviations],
        "found": [float(mean) for mean in means],
        "found_deviation": [float(d) for d in deviations],
    }
    step = Step(
        "noise",
        gap <= NOISE_GAP,
        f"largest gap between the curves, in parts of their starts and beyond "
        f"three standard errors, is {gap:.3f}; {NOISE_GAP} is allowed",
        1.0 - max(gap, 0.0),
        1.0 - NOISE_GAP,
    )
    return step, curves
