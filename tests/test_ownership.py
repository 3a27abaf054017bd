"""A network's owner is shown to be it, and nobody else is."""

import copy
import dataclasses
import json
import math
import statistics

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_passport as kp
from keras_passport import attacks, ownership, sealed
from keras_passport.attacks import reverse
from keras_passport.attacks.fake import Judge
from keras_passport.attacks.forgery import forge_passport
from keras_passport.models.unlocking import with_parameters
from keras_passport.ownership import evidence as evidence_steps
from keras_passport.ownership import networks
from keras_passport.ownership.alignment import align
from keras_passport.ownership.evidence import provenance
from support.owned_networks import (
    OWNER,
    VERIFY,
    Owned,
    arrays_of,
    examples,
    fitted,
    network,
)


@pytest.fixture(scope="module")
def base():
    keras.utils.set_random_seed(1)
    return fitted(network())


@pytest.fixture(scope="module")
def owned(base):
    keras.utils.set_random_seed(2)
    owned = Owned(OWNER, "V3", "random_image", base)
    assert owned.accuracy > 0.9
    return owned


@pytest.fixture(scope="module")
def report(owned):
    """What a judge finds in the network as it was published."""
    return owned.verify(owned.public)


@pytest.fixture(scope="module")
def foreign():
    """Networks of the same kind that were trained by others."""
    model = fitted(network(), 1)
    models = []
    for seed in range(30):
        keras.utils.set_random_seed(100 + seed)
        for layer in model.layers:
            if hasattr(layer, "kernel"):
                start = keras.initializers.HeNormal()
                layer.kernel.assign(start(layer.kernel.shape))
        for step in range(20):
            model.train_on_batch(*examples(60, [seed, step]))
        models.append(arrays_of(model))
    return models


def unlocked(owned):
    return kp.unlock(owned.model, owned.passport, fold=False)


def permuted(owned):
    return attacks.permute_channels(owned.public, seed=3).model


def rewritten(owned):
    """Permuted, negated and rescaled, with γ and β that fit."""
    model, parameters = owned.public, owned.parameters
    for rewrite in (
        attacks.permute_channels,
        attacks.flip_signs,
        attacks.scale_filters,
    ):
        done = rewrite(model, seed=5)
        model, parameters = done.model, done.parameters(parameters)
    return with_parameters(model, parameters, fold=False)


def quantized(owned):
    """Kernels of int8: one of 255 values for each filter."""
    model = unlocked(owned)
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D):
            kernel = ops.convert_to_numpy(layer.kernel)
            step = np.abs(kernel).max((0, 1, 2)) / 127
            layer.kernel.assign(np.round(kernel / step) * step)
    return model


def renamed_arrays(owned):
    """What a file holds of the unlocked network, under other names."""
    return {
        f"layer_{number // 5}/{variable.name}": ops.convert_to_numpy(variable)
        for number, variable in enumerate(unlocked(owned).variables)
    }


SUSPECTS = {
    "public": lambda owned: owned.public,
    "unlocked": unlocked,
    "folded": lambda owned: kp.unlock(owned.model, owned.passport),
    "permuted": permuted,
    "negated": lambda owned: attacks.flip_signs(owned.public, seed=4).model,
    "rescaled": lambda owned: attacks.scale_filters(owned.public).model,
    "rewritten": rewritten,
    "fine-tuned": lambda owned: fitted(unlocked(owned), 5),
    "pruned": lambda owned: attacks.prune(owned.public, 0.3),
    "int8": quantized,
    "arrays": renamed_arrays,
}


# What lost nothing. Rewrites make the passport fail; undone, it works again.
WHOLE = ("public", "rewritten", "folded")


@pytest.mark.parametrize("name", SUSPECTS)
def test_what_was_made_of_the_network_is_derived(name, owned, report):
    if name != "public":
        report = owned.verify(SUSPECTS[name](owned))
    assert report.verdict == "derived", str(report)
    assert report["signs"].p < 1e-9
    assert report["signs"].figure > report["signs"].null
    assert report.false_positive < 1e-9
    if name in WHOLE:
        figure = report["passport"].figure
        assert figure == pytest.approx(owned.accuracy, abs=0.01)
        assert report["noise"].holds


@pytest.mark.parametrize("function", ["V1", "V2", "V3"])
def test_a_network_recovered_by_reverse_engineering_is_derived(
    function, base, owned
):
    mine = owned
    if function != "V3":
        keras.utils.set_random_seed(3)
        mine = Owned(OWNER, function, "random_pattern", base)
    stolen = attacks.reverse_engineering(
        mine.public,
        examples(600, 1),
        mine.test,
        fraction=1.0,
        recipe=dataclasses.replace(reverse.RECIPE, epochs=3),
        keep_model=True,
    )
    report = mine.verify(stolen.model)
    assert report.verdict == "derived", str(report)


def test_a_network_that_was_published_with_hidden_rows(owned):
    """Claimed before the training, under the one passport that there is."""
    published = kp.hide_rows(owned.model, owned.passport)
    record = ownership.record(published, owned.passport, owned.test, repeats=2)
    assert record.fingerprint == owned.opening.fingerprint
    evidence = owned.evidence(published=published, record=record)
    for suspect in (kp.public(published), unlocked(owned)):
        report = ownership.verify(suspect, evidence, owned.test, **VERIFY)
        assert report.verdict == "derived", str(report)
        assert report["signs"].holds and report["provenance"].holds


def test_a_claim_is_of_the_passport_whatever_the_models_paths(owned):
    outer = keras.Sequential([keras.Input((8, 8, 2)), owned.public])
    for make in (ownership.record, ownership.claim):
        about = (
            {"data": owned.test}
            if make is ownership.record
            else {
                "owner": OWNER,
                "reference": owned.base,
                "secret": owned.secret,
            }
        )
        made = make(passport=owned.passport, model=outer, **about)
        opening = made[1] if isinstance(made, tuple) else made
        assert opening.fingerprint == owned.passport.fingerprint


def test_no_independent_network_is_derived(owned, foreign):
    for suspect in foreign[:2]:
        report = owned.verify(suspect, fakes=2, nulls=100)
        assert report.verdict == "not shown"
        assert not report["kernels"].holds
    # All of them beside the claim: it must beat each one.
    report = owned.verify(owned.public, foreign=foreign, nulls=1000)
    assert report.verdict == "derived"
    assert report["kernels"].nulls == 60
    assert report["signs"].nulls == 1000
    assert report["kernels"].null < 0.6


def test_a_thousand_foreign_signatures_agree_with_no_network(owned, foreign):
    """False positives of the signs alone, over pairs of network and owner."""
    owners = networks.read(owned.public)
    rng = np.random.default_rng(0)
    smallest = 1.0
    for suspect in [*foreign, owned.public]:
        matches = align(owners, networks.read(suspect))
        found = {m.path: m.gamma_signs for m in matches if m.path != "head"}
        for _ in range(35):
            opening = type(owned.opening)(
                **{
                    **vars(owned.opening),
                    "secret": rng.bytes(ownership.claim_secret.SECRET_BYTES),
                }
            )
            step = ownership.evidence.signs(opening, found, 1, 0, "")
            smallest = min(smallest, step.p)
    assert smallest > 1e-9


def test_others_claims_on_this_network(owned, base):
    """Theirs is another network, or a passport that says nothing here."""
    keras.utils.set_random_seed(4)
    other = Owned("Eve", "V3", "random_pattern", base)
    assert other.verify(owned.public).verdict == "not shown"
    assert owned.verify(other.public).verdict == "not shown"
    # Who copies the published network, and knows no γ, has nothing to show.
    passport = kp.Passport.random_pattern(owned.public)
    claim, opening = ownership.claim(passport, owner="Eve", model=owned.public)
    evidence = ownership.Evidence(claim, opening, passport, owned.public)
    report = ownership.verify(owned.public, evidence, owned.test, **VERIFY)
    assert report.verdict == "not shown"
    assert report["kernels"].holds and not report["signs"].holds
    # Not even with the luckiest of many passports, and a record made of it.
    judge = Judge(owned.public, *owned.test, 300)
    tried = [kp.Passport.random_pattern(owned.public) for _ in range(200)]
    passport = max(tried, key=lambda one: judge(one.packed()))
    claim, opening = ownership.claim(passport, owner="Eve", model=owned.public)
    record = ownership.record(
        kp.bind(owned.public, passport), passport, owned.test, (0.0,), repeats=2
    )
    kp.unbind(owned.public)
    evidence = ownership.Evidence(
        claim, opening, passport, owned.public, record=record
    )
    report = ownership.verify(owned.public, evidence, owned.test, **VERIFY)
    assert report.verdict == "not shown"
    assert report["passport"].figure < report["passport"].threshold


def forged(owned, negated):
    """A thief's claim with γ and β: keys forged to order."""
    public, parameters = owned.public, owned.parameters
    secret = ownership.new_secret()
    if negated:
        signature = ownership.Signature(secret, "Eve")
        public = kp.public(public)
        parameters = dict(parameters)
        for path, layer in kp.protected_layers(public).items():
            gamma, beta = parameters[path]
            flips = np.asarray(signature(path, len(gamma))) * np.where(
                gamma < 0, -1.0, 1.0
            )
            layer.layer.kernel.assign(
                ops.convert_to_numpy(layer.layer.kernel) * flips
            )
            mean = layer.normalization.moving_mean
            mean.assign(ops.convert_to_numpy(mean) * flips)
            parameters[path] = gamma * flips, beta
    passport, _ = forge_passport(public, parameters)
    claim, opening = ownership.claim(
        passport, owner="Eve", model=public, secret=secret
    )
    return ownership.Evidence(
        claim, opening, passport, public, dated="2026-03-01"
    )


@pytest.mark.parametrize("negated", [False, True], ids=["keys", "signs"])
def test_a_forgers_claim_is_contested_and_the_date_decides(owned, negated):
    """Forged keys work, and negated filters have the thief's signs."""
    thief = forged(owned, negated)
    alone = ownership.verify(owned.public, thief, owned.test, **VERIFY)
    assert alone.verdict == "derived"
    assert alone["signs"].holds == negated
    report = owned.verify(unlocked(owned), rivals=[thief])
    assert report.verdict == "contested"
    assert OWNER in report.reason and "2026-01-02" in report.reason
    eves = {"owner": "Eve", "dated": "2026-03-01", "verdict": "derived"}
    assert report.rivals == (eves,)
    # Without a date nothing is decided.
    undated = ownership.verify(
        owned.public, owned.evidence(None), owned.test, rivals=[thief], **VERIFY
    )
    assert undated.verdict == "contested" and "no date" in undated.reason


def made_to_fit(owned, opening, model):
    """A network with the suspect's kernels, negated for a claim of before."""
    flat = {layer.name: layer for layer in unlocked(owned).layers}
    for path, layer in kp.protected_layers(model).items():
        kernel = ops.convert_to_numpy(flat[path].kernel)
        gamma, _ = owned.parameters[path]
        bits = np.asarray(opening.signature(path, len(gamma)))
        layer.layer.kernel.assign(kernel * bits * np.where(gamma < 0, -1, 1))
    model.get_layer("head").set_weights(flat["head"].get_weights())
    return model


@pytest.mark.parametrize("suspect", ["public", "unlocked"])
def test_a_claim_of_before_the_network_was_trained_is_of_another(
    suspect, owned
):
    """Of no network that its owner could not know.

    Otherwise a stock of old claims, one for each architecture, would be
    earlier than any owner's: whoever claims brings what was published.
    """
    secret = ownership.new_secret()
    blank = kp.protect(network())
    passport = kp.Passport.random_pattern(
        blank, seed=ownership.passport_seed(secret)
    )
    claim, opening = ownership.claim(
        passport, owner="Eve", model=blank, secret=secret
    )
    published = made_to_fit(owned, opening, kp.public(blank))
    thief = ownership.Evidence(
        claim, opening, passport, published, dated="2020-01-01"
    )
    report = ownership.verify(
        SUSPECTS[suspect](owned), thief, owned.test, **VERIFY
    )
    # Where γ can be seen, nothing else would speak against the thief.
    assert report["kernels"].holds
    assert report["signs"].holds == (suspect == "unlocked")
    assert report.verdict == "not shown" and "kernels" in report.reason
    report = owned.verify(SUSPECTS[suspect](owned), rivals=[thief])
    assert report.verdict == "derived"


def test_a_rivals_mistakes_are_no_claim(owned, tmp_path):
    """Nor do they keep an owner from being shown to be one."""
    other = Owned("Eve", "V3", "random_pattern", owned.base, epochs=1)
    unfit = ownership.Evidence(
        other.claim, other.opening, other.passport, owned.public
    )
    plain = ownership.Evidence(
        other.claim, other.opening, other.passport, owned.base
    )
    # The network's own kernels, before a head that knows two of six classes.
    body = owned.base.get_layer("pool").output
    two = kp.protect(keras.Model(owned.base.inputs, layers.Dense(2)(body)))
    for path, layer in kp.protected_layers(two).items():
        stolen = kp.protected_layers(owned.public)[path]
        layer.layer.set_weights(stolen.layer.get_weights())
    fewer = ownership.Evidence(other.claim, other.opening, other.passport, two)
    report = owned.verify(owned.public, rivals=[unfit, plain, fewer])
    assert report.verdict == "derived"
    # The judge is told what could not be examined, and by whom it was brought.
    told = [rival["verdict"] for rival in report.rivals]
    assert told == ["not shown", "not examined", "not examined"]
    assert str(report).count("claim of Eve, of no proved date: not exam") == 2
    assert json.loads(report.to_json())["rivals"] == list(report.rivals)
    ownership.page.save(report, tmp_path / "report.html")
    assert "not examined" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("examples, least", [(1, 1.0), (50, 0.15)])
def test_of_few_examples_luck_may_have_some_right(examples, least):
    """Also where no fake has any."""
    assert evidence_steps._above_luck([0.0] * 1000, examples) > least


@pytest.mark.parametrize("name", ["fingerprint", "kernels"])
def test_a_record_is_of_this_network(name, owned):
    record = dataclasses.replace(owned.record, **{name: "0" * 64})
    report = ownership.verify(
        owned.public, owned.evidence(record=record), owned.test, **VERIFY
    )
    assert report.verdict == "not shown" and "record" in report.reason


@pytest.mark.parametrize(
    "changed",
    [
        {"layers": None},
        {"layers": {"conv0": "12"}},
        {"images": 3},
        {"images": ["no hash"]},
        {"kernels": None},
        {"kernels": "0" * 63},
        {"kind": 7},
        {"reference": 7},
        {"seed": 5},
        {"seed": "hex"},
        {"owner": 7},
        {"owner": "A" * 201},
        {"fingerprint": None},
    ],
    ids=str,
)
def test_an_opening_says_what_claims_say(changed, owned):
    with pytest.raises(kp.PassportError, match="Expected an"):
        dataclasses.replace(owned.opening, **changed)


def test_a_claim_must_be_older_than_the_suspect(owned):
    report = owned.verify(owned.public, suspect_dated="2025-12-31")
    assert report.verdict == "not shown"
    report = owned.verify(owned.public, suspect_dated="2026-02-01")
    assert report.verdict == "derived"


def test_another_passport_or_opening_is_not_what_was_committed_to(owned):
    passport = kp.Passport.random_pattern(owned.public)
    for changed in (
        {"passport": passport},
        {"claim": ownership.Claim("0" * 64)},
    ):
        report = ownership.verify(
            owned.public, owned.evidence(**changed), owned.test, **VERIFY
        )
        assert report.verdict == "not shown"
        assert not report["commitment"].holds


@pytest.mark.parametrize("kind", ["random_pattern", "random_image"])
def test_maps_that_a_passport_holds_are_made_anew_too(kind, owned):
    """As those of small files are, and of passports that were in none."""
    passport = copy.copy(owned.passport)
    if kind == "random_pattern":
        passport = kp.Passport.random_pattern(owned.public)
    evidence = owned.evidence(passport=passport)
    assert provenance(evidence, passport).holds
    path, entry = next(iter(passport.layers.items()))
    sevens = np.full(entry.gamma.shape, 7.0, "float32")
    other = dataclasses.replace(entry, gamma=sevens)
    passport.layers = {**passport.layers, path: other}
    step = provenance(evidence, passport)
    assert step.holds is False and path in step.text


def test_files_come_back_and_change_in_no_bit(owned, tmp_path):
    kinds = {
        "claim.json": (owned.claim, ownership.Claim),
        "opening.json": (owned.opening, ownership.claims.Opening),
        "record.json": (owned.record, ownership.Record),
    }
    for name, (value, kind) in kinds.items():
        path = tmp_path / name
        value.save(path)
        loaded = kind.load(path)
        assert vars(loaded) == vars(value)
        text = path.read_bytes()
        for at in range(0, len(text), max(1, len(text) // 60)):
            for bit in (1, 128):
                changed = bytearray(text)
                changed[at] ^= bit
                path.write_bytes(changed)
                with pytest.raises(kp.PassportError):
                    kind.load(path)
        for changed in (text[:-1], text + b"\n", b" " + text, text[:40], b""):
            path.write_bytes(changed)
            with pytest.raises(kp.PassportError):
                kind.load(path)
    assert (tmp_path / "opening.json").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "name, value",
    [
        ("accuracy", 1.2),
        ("accuracy", float("nan")),
        ("accuracy", "high"),
        ("examples", 0),
        ("kernels", None),
        ("noise", {}),
        ("noise", None),
        ("accuracies", []),
        ("accuracies", [[]]),
        ("accuracies", [[1.0, 1.0]] * 2),
        ("accuracies", [[1.0]] * 3),
        ("accuracies", [[1.0, 2.0]] * 3),
        ("fractions", [0.5, 0.7, 1.0]),
        ("scale", None),
        ("seed", -1),
        ("replace", "no"),
    ],
)
def test_a_record_that_no_judge_can_compute_with(name, value, owned):
    given = vars(owned.record)
    if name not in given:
        name, value = "noise", given["noise"] | {name: value}
    with pytest.raises(kp.PassportError, match="Expected a record of"):
        ownership.Record(**{**given, name: value})


def test_a_record_does_not_say_how_much_draws_differ(owned):
    """Who brings it could have them differ by all there is."""
    figures = set()
    for accuracies in ([1.0, 0.0], [0.5, 0.5]):
        noise = owned.record.noise | {"accuracies": [accuracies] * 3}
        record = dataclasses.replace(owned.record, noise=noise)
        evidence = owned.evidence(record=record)
        report = ownership.verify(owned.public, evidence, owned.test, **VERIFY)
        figures.add(report["noise"].figure)
    assert len(figures) == 1


def test_how_much_two_draws_differ_is_estimated_without_bias(monkeypatch):
    """Of few draws, their deviation from their own mean is too small."""
    measured = [[0.8, 0.8], [0.48, 0.52]]
    monkeypatch.setattr(
        evidence_steps.audit,
        "accuracy_under_noise",
        lambda *given, **options: {"accuracies": measured},
    )
    noise = {"fractions": [0.0, 0.5], "accuracies": [[0.8] * 2, [0.1] * 2]}
    record = ownership.Record(
        **{"accuracy": 0.8, "examples": 100, "fingerprint": "", "kernels": ""},
        noise=noise | {"scale": 1.0, "seed": 0, "replace": True},
        key_scaling="signed",
    )
    step, curves = evidence_steps.noise(None, None, None, None, record)
    # In parts of the start, 0.8; a difference of two means of two draws each.
    deviation = statistics.stdev(measured[1])
    error = deviation / 0.8 * math.sqrt(1 / 2 + 1 / 2)
    gap = max(0.0, (0.5 - 0.1) / 0.8 - 3 * error)
    assert step.figure == pytest.approx(1 - gap)
    assert curves["found_deviation"] == pytest.approx([0.0, deviation])
    spread = dataclasses.replace(
        record, noise=record.noise | {"accuracies": measured}
    )
    assert spread.deviations == pytest.approx([0.0, deviation])


def test_a_record_begins_without_noise(owned):
    with pytest.raises(ValueError, match="begin with 0"):
        ownership.record(owned.model, owned.passport, owned.test, (0.5, 1.0))


def test_a_claim_tells_nothing(owned, tmp_path):
    owned.claim.save(tmp_path / "claim.json")
    text = (tmp_path / "claim.json").read_text()
    assert set(json.loads(text)["content"]) == {"commitment", "version"}
    for secret in (owned.secret.hex(), owned.passport.seed.hex()):
        assert secret not in text
        assert secret not in repr(owned.opening) + repr(owned.opening.signature)


def test_the_report_is_the_same_byte_for_byte(owned, report, tmp_path):
    one, other = report, owned.verify(owned.public)
    one.save(tmp_path / "report.json")
    assert (tmp_path / "report.json").read_bytes() == other.to_json()
    content = json.loads(other.to_json())
    assert content["verdict"] == "derived"
    assert content["settings"] == {
        "batch_size": 500,
        "fakes": 20,
        "foreign": 0,
        "nulls": 200,
        "seed": 0,
    }
    assert "derived" in str(one).lower()
    assert sealed.canonical(content) + b"\n" == other.to_json()


def test_the_page_shows_pictures(owned, report, tmp_path):
    pytest.importorskip("matplotlib")
    ownership.page.save(report, tmp_path / "report.html", owned.passport)
    text = (tmp_path / "report.html").read_text()
    assert text.count("<img") == 3 and "Derived" in text
    assert owned.secret.hex() not in text


def test_a_page_is_written_whatever_layers_are_called(tmp_path):
    """A claimant names them, and matplotlib takes dollars for formulas."""
    pytest.importorskip("matplotlib")
    about = {"path": "$\\frac{$", "channels": 4, "agreeing": 3}
    report = ownership.VerificationReport(
        *("Ada Ltd", "derived", "why", (), 1.0, {}), layers=(about,)
    )
    ownership.page.save(report, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text().count("<img") == 1


def test_calibration_starts_from_the_signature(base):
    model = kp.reinitialize(kp.protect(base))
    kp.bind(model, kp.Passport.random_pattern(model))
    signature = ownership.Signature(ownership.new_secret(), OWNER)
    kp.calibrate(model, signs=signature)
    for path, layer in kp.protected_layers(model).items():
        gamma, _ = layer.hidden_parameters()
        np.testing.assert_allclose(
            gamma, signature(path, len(gamma)), atol=1e-3
        )


@pytest.mark.parametrize(
    "signs",
    [lambda path, n: np.ones(n + 1), lambda path, n: np.zeros(n)],
    ids=["size", "value"],
)
def test_signs_must_be_signs(signs, base):
    model = kp.reinitialize(kp.protect(base))
    kp.bind(model, kp.Passport.random_pattern(model))
    with pytest.raises(ValueError, match="Expected signs"):
        kp.calibrate(model, signs=signs)
    with pytest.raises(ValueError, match="signs or like"):
        kp.calibrate(model, like=base, signs=signs)


def test_who_brings_too_little_is_told_so(owned):
    with pytest.raises(kp.PassportError, match="reference"):
        owned.evidence(reference=None)
    with pytest.raises(kp.PassportError, match="32 bytes"):
        ownership.Signature(b"short", OWNER)
    with pytest.raises(kp.PassportError, match="suspect"):
        owned.verify("suspect.keras")
    with pytest.raises(kp.PassportError, match="owner's name"):
        ownership.claim(owned.passport, owner="", model=owned.model)
    with pytest.raises(ValueError, match="nulls"):
        owned.verify(owned.public, nulls=0)


def test_a_claim_travels_with_the_network(owned, tmp_path):
    model = ownership.attach(kp.public(owned.public), owned.claim)
    path = tmp_path / "published.keras"
    for one in (model, kp.public(model), kp.require_passport(model)):
        one.save(path)
        loaded = keras.saving.load_model(path)
        assert ownership.attached(loaded) == owned.claim
    assert type(keras.saving.load_model(path)) is kp.PassportInputModel
    if keras.backend.backend() == "tensorflow":
        kp.export_saved_model(model, tmp_path / "served")
        claim = ownership.Claim.load(tmp_path / "served/assets/claim.json")
        assert claim == owned.claim
    assert ownership.attached(owned.base) is None
    with pytest.raises(kp.PassportError, match="ProtectedModel"):
        ownership.attach(owned.base, owned.claim)


@pytest.mark.parametrize("order", [False, True], ids=["", "rows in order"])
def test_a_trained_network_is_claimed_by_signs_of_filters(order, base):
    """Exactly protected, with the signs of a claim: no training at all."""
    secret = ownership.new_secret()
    signature = ownership.Signature(secret, OWNER)
    model, passport = kp.protect_trained(base, signs=signature, order=order)
    claim, opening = ownership.claim(
        passport, owner=OWNER, model=model, secret=secret
    )
    test = examples(300, 2)
    evidence = ownership.Evidence(
        claim, opening, passport, kp.public(model), dated="2026-01-02"
    )
    for suspect in (
        kp.public(model),
        kp.unlock(model, passport, fold=False),
        kp.unlock(model, passport),
        base,
    ):
        report = ownership.verify(suspect, evidence, test, **VERIFY)
        assert report.verdict == "derived", str(report)
        # Filters of γ = 0 may have any sign.
        assert report["signs"].figure > 0.97
        assert report["passport"].holds
        assert report["provenance"].holds is None
    licensor = kp.licensing.Licensor(passport, model, bytes(32))
    licence = licensor.issue("Bob")
    leak = kp.unlock(kp.bind(model, licence), licence)
    assert licensor.trace(leak, ["Ann", "Bob", "Eve"]).verdict == "Bob"


def test_a_claim_holds_where_the_network_is_a_part_of_a_product(base):
    """Its layers have other paths there: signs and pictures are the claim's."""
    secret = ownership.new_secret()
    signature = ownership.Signature(secret, OWNER)
    test = examples(300, 2)
    pictures = examples(4, 5)[0]
    for options in ({}, {"images": pictures}):
        model, passport = kp.protect_trained(base, signs=signature, **options)
        claim, opening = ownership.claim(
            passport,
            owner=OWNER,
            model=model,
            secret=secret,
            reference=base if options else None,
        )
        product = keras.Sequential(
            [keras.Input(model.input_shape[1:]), kp.public(model)]
        )
        evidence = ownership.Evidence(
            claim,
            opening,
            passport,
            product,
            reference=base if options else None,
            dated="2026-01-02",
        )
        report = ownership.verify(
            kp.unlock(model, passport), evidence, test, **VERIFY
        )
        assert report.verdict == "derived", str(report)
        assert report["signs"].figure > 0.97
        assert sum(layer["agreeing"] or 0 for layer in report.layers) > 0
        assert report["provenance"].holds is (True if options else None)


def test_signs_decide_where_there_are_several_outputs(base):
    """No accuracy can be judged there."""
    secret = ownership.new_secret()
    outputs = [base.output, base.get_layer("pool").output]
    several = keras.Model(base.input, outputs)
    model, passport = kp.protect_trained(
        several, signs=ownership.Signature(secret, OWNER)
    )
    claim, opening = ownership.claim(
        passport, owner=OWNER, model=model, secret=secret
    )
    evidence = ownership.Evidence(claim, opening, passport, kp.public(model))
    report = ownership.verify(
        kp.unlock(model, passport), evidence, examples(20, 2), **VERIFY
    )
    assert report.verdict == "derived" and report["signs"].holds
    assert report["passport"].holds is None


def test_secrets_of_claims_are_looked_for(owned, tmp_path):
    owned.claim.save(tmp_path / "claim.json")
    secrets = {"claim's secret": bytes(owned.secret)}
    clean = kp.find_leaks(owned.passport, tmp_path, owned.public)
    assert clean.clean
    owned.opening.save(tmp_path / "opening.json")
    report = kp.find_leaks(
        owned.passport, tmp_path, owned.public, secrets=secrets
    )
    told = {leak.what for leak in report.leaks}
    assert "claim's secret in hexadecimal" in told
    with pytest.raises(kp.PassportError, match="16 bytes"):
        kp.find_leaks(owned.passport, tmp_path, secrets={"short": b"secret"})
