"""`verify`: is a suspect network derived from the one that was claimed?"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import keras

from keras_passport import scores
from keras_passport.attacks.fake import Judge
from keras_passport.errors import PassportError
from keras_passport.layers.protected import protected_layers
from keras_passport.ownership import dates, networks
from keras_passport.ownership import evidence as steps_of
from keras_passport.ownership.alignment import align, similarity
from keras_passport.ownership.claims import Claim, Opening
from keras_passport.ownership.records import Record
from keras_passport.ownership.report import (
    CONTESTED,
    DERIVED,
    NOT_EXAMINED,
    NOT_SHOWN,
    Step,
    VerificationReport,
)
from keras_passport.ownership.restoring import AnyStatistics, restored
from keras_passport.passports.passport import Passport, check_passport
from keras_passport.texts import shown


@dataclasses.dataclass(frozen=True, repr=False)
class Evidence:
    """What somebody brings who says that a network is theirs.

    Args:
        claim: What was published.
        opening: Its opening.
        passport: The passport.
        published: The protected model as it was published.
        reference: The network that identity images went through; needed for
            image kinds.
        record: What was written down at release; `None` for none.
        dated: Since when the claim is known to others, as an ISO date or time
            that the judge has checked, of UTC if it has no zone; `None` for
            no proof.
    """

    claim: Claim
    opening: Opening
    passport: Passport
    published: keras.Model
    reference: keras.Model | None = None
    record: Record | None = None
    dated: str | None = None

    def __post_init__(self):
        check_passport(self.passport)
        if self.dated is not None:
            dates.span(self.dated, "dated")
        if self.passport.images is not None and self.reference is None:
            raise PassportError(
                "Expected the reference network that the passport's identity "
                "images went through. Received: reference=None"
            )

    def __repr__(self):
        return f"<Evidence of '{shown(self.opening.owner)}'>"


def verify(
    suspect: Any,
    evidence: Evidence,
    data: tuple,
    *,
    rivals: Sequence[Evidence] = (),
    foreign: Iterable = (),
    suspect_dated: str | None = None,
    nulls: int = 1000,
    fakes: int = 1000,
    seed: int = 0,
    batch_size: int = 500,
) -> VerificationReport:
    """Examines a claim against a suspect network (Section 3.2).

    The verdict is `"derived"` where the claim opens, the published kernels
    are in the suspect, and its γ has the signs that were committed to or the
    passport gives the accuracy that was recorded. All must beat every null,
    which get the same search. It is `"contested"` where another's claim holds
    as well: a thief who knows γ and β forges keys, negates filters until
    signs are theirs, and claims. What they can't have is the earlier date.

    A passport gives the accuracy if that is above all foreign ones' and ten of
    their standard deviations above their mean: whoever tries passports until
    one is lucky, and writes a record of it, has shown nothing.

    Test data are the judge's own. Pictures that a claimant chose prove
    nothing: a network answers to chosen ones as anybody wishes, also one that
    is not theirs (adversarial examples transfer).

    Args:
        suspect: A protected or ordinary Keras model, or a dict from names to
            arrays, as of a SavedModel's variables.
        evidence: What the claimant brings.
        data: The judge's inputs and integer labels.
        rivals: What others bring who claim it too; the report says what
            became of each. One whose passport, network or the judge's data do
            not fit one another can't be examined, and contests nothing.
        foreign: Independently trained networks of the same task and
            architecture: the claim must fail on them. 30 or more say
            something. Public checkpoints that either may have started from
            belong here as well: two networks that were made of one are alike,
            and neither is derived from the other.
        suspect_dated: Since when the suspect is known, as an ISO date or
            time. A claim that is not older proves nothing: whoever takes
            somebody else's public network makes keys for it, and claims.
        nulls: How many foreign secrets' signs to try.
        fakes: How many foreign passports to try, 2 or more. Where they are
            fewer than 100, the passport must be further above them.
        seed: Of all nulls.
        batch_size: Examples per call.

    Returns:
        A `VerificationReport`.

    Raises:
        PassportError: If the suspect is no network, or the passport does not
            fit the published model.
        ValueError: If an argument is out of range.

    Example:

    >>> claim, opening = kp.ownership.claim(
    ...     passport, owner="Ada Ltd", model=model
    ... )
    >>> evidence = kp.ownership.Evidence(claim, opening, passport, model)
    >>> suspect = kp.unlock(model, passport)
    >>> report = kp.ownership.verify(
    ...     suspect, evidence, test, nulls=200, fakes=5
    ... )
    >>> report.verdict
    'not shown'

    Reference:

    - Fan, Ng, Chan: Digital Passport, Section 3.2, steps 1 to 3.
    """
    if nulls < 1 or fakes < 2:
        raise ValueError(
            "Expected nulls of 1 or more, and fakes of 2 or more. "
            f"Received: nulls={nulls}, fakes={fakes}"
        )
    if suspect_dated is not None:
        dates.span(suspect_dated, "suspect_dated")
    foreign = list(foreign)
    report = _examined(
        suspect, evidence, data, foreign, nulls, fakes, seed, batch_size
    )
    if report.verdict == DERIVED and _is_younger(evidence, suspect_dated):
        return dataclasses.replace(
            report,
            verdict=NOT_SHOWN,
            reason="the claim is not known to be older than the suspect, of "
            f"{suspect_dated}",
        )
    if report.verdict != DERIVED:
        return report
    examined = []
    for rival in rivals:
        try:
            theirs = _examined(
                suspect, rival, data, foreign, nulls, fakes, seed, batch_size
            )
        except ValueError:
            # What a rival brings must not keep a claim from its verdict.
            examined.append(NOT_EXAMINED)
            continue
        younger = _is_younger(rival, suspect_dated)
        examined.append(NOT_SHOWN if younger else theirs.verdict)
    report = dataclasses.replace(
        report,
        rivals=tuple(
            {
                "owner": rival.opening.owner,
                "dated": rival.dated,
                "verdict": verdict,
            }
            for rival, verdict in zip(rivals, examined, strict=True)
        ),
    )
    holding = [
        rival
        for rival, verdict in zip(rivals, examined, strict=True)
        if verdict == DERIVED
    ]
    if not holding:
        return report
    return dataclasses.replace(
        report,
        verdict=CONTESTED,
        reason=_earlier([evidence, *holding]),
    )


def _is_younger(evidence, suspect_dated) -> bool:
    return suspect_dated is not None and (
        evidence.dated is None
        or not dates.is_before(evidence.dated, suspect_dated)
    )


def _earlier(claims) -> str:
    undated = [shown(c.opening.owner) for c in claims if c.dated is None]
    if undated:
        return (
            "several claims hold, and the earlier one decides; no date is "
            f"proved for that of {', '.join(undated)}"
        )
    first, *others = sorted(
        claims, key=lambda claim: dates.span(claim.dated, "dated")
    )
    for other in others:
        if not dates.is_before(first.dated, other.dated):
            return (
                "several claims hold, and no earlier one decides: two are "
                f"dated {first.dated} and {other.dated}"
            )
    return (
        f"several claims hold; that of {shown(first.opening.owner)} is the "
        f"earlier, of {first.dated}, and decides"
    )


def _examined(
    suspect, evidence, data, foreign, nulls, fakes, seed, batch_size
) -> VerificationReport:
    published = evidence.published
    passport = evidence.passport.fitted(published)
    protected = protected_layers(published)
    forms = [(networks.read(published), None)]
    if orders := networks.orders(published, passport):
        # A thief may have the rows as they are stored, or as they belong.
        forms.append((networks.read(published, orders), orders))
    owners, matches, orders = _nearest(forms, networks.read(suspect))
    steps = [
        steps_of.commitment(evidence, evidence.passport),
        steps_of.provenance(evidence, evidence.passport),
        steps_of.kernels([form for form, _ in forms], matches, foreign, seed),
    ]
    curves = None
    known = {owner.path for owner in owners}
    complete = {match.path for match in matches} >= set(protected) & known
    found, source = {}, ""
    if complete:
        model = restored(published, matches, orders)
        found, source = steps_of.signs_of(matches, model, passport, protected)
        if len(published.outputs) == 1:
            judge = Judge(model, *scores.pair(data), batch_size)
            judge = AnyStatistics(judge, model, published)
            steps.append(
                steps_of.passport_works(
                    judge, model, passport, evidence.record, fakes, seed
                )
            )
            if evidence.record is not None:
                step, curves = steps_of.noise(
                    judge, model, passport, data, evidence.record
                )
                steps.append(step)
        else:
            text = "accuracy is not judged where there are several outputs"
            steps.append(Step("passport", None, text))
    # Where the claimed network is a part of another, paths are others now.
    signed = steps_of.signed_paths(passport)
    told = {signed.get(path, path): values for path, values in found.items()}
    steps.insert(3, steps_of.signs(evidence.opening, told, nulls, seed, source))
    verdict, reason = _verdict({step.name: step for step in steps}, complete)
    return VerificationReport(
        owner=evidence.opening.owner,
        verdict=verdict,
        reason=reason,
        steps=tuple(steps),
        false_positive=_bound({step.name: step for step in steps}),
        settings={
            "fakes": fakes,
            "foreign": len(foreign),
            "nulls": nulls,
            "seed": seed,
            "batch_size": batch_size,
        },
        layers=tuple(
            _about(match, found, evidence.opening, signed) for match in matches
        ),
        noise=curves,
    )


def _nearest(forms, suspects) -> tuple:
    """The owner's layers in the form that a suspect's are most like."""
    found = []
    for owners, orders in forms:
        matches = align(owners, suspects)
        filters = sum(layer.filters for layer in owners)
        found.append((similarity(matches, filters), owners, matches, orders))
    return max(found, key=lambda form: form[0])[1:]


def _about(match, found, opening, signed) -> dict:
    about = {
        "path": match.path,
        "suspect": match.found.path,
        "cosine": float(match.cosines.mean()),
        "channels": len(match.order),
        "agreeing": None,
    }
    if match.path in found:
        signs = found[match.path]
        path = signed.get(match.path, match.path)
        bits = opening.signature(path, len(signs))
        about["agreeing"] = int((bits == signs).sum())
    return about


def _verdict(steps, complete) -> tuple[str, str]:
    if not steps["commitment"].holds:
        return NOT_SHOWN, steps["commitment"].text
    if steps["provenance"].holds is False:
        return NOT_SHOWN, steps["provenance"].text
    if not steps["kernels"].holds:
        return NOT_SHOWN, "the published kernels are not in the suspect"
    if not complete:
        return NOT_SHOWN, "protected layers are missing from the suspect"
    speaking = [
        words
        for name, words in (
            ("signs", "its γ has the signs that were committed to"),
            ("passport", "the passport gives the accuracy that it should"),
        )
        if steps[name].holds
    ]
    if not speaking:
        return (
            NOT_SHOWN,
            "kernels are the published ones, which anybody has, and neither "
            "signs nor passport speak for the claim",
        )
    return (
        DERIVED,
        f"it has the published kernels, and {' and '.join(speaking)}",
    )


def _bound(steps) -> float:
    """A bound on the chance that a foreign network is found to be derived.

    It must have the kernels, and signs or accuracy; of the two that may speak
    for it, the surer one counts (twice: Bonferroni).
    """
    speaking = [
        steps[name].p
        for name in ("signs", "passport")
        if name in steps and steps[name].holds
    ]
    return float(min(1.0, steps["kernels"].p, 2 * min(speaking, default=0.5)))
