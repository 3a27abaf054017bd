"""Whose network is it: a claim before the release, evidence in a dispute.

Since F is linear, whoever knows γ and β forges a key, and rewrites of a
network make the valid passport fail: that a passport works proves nothing, nor
that it does not. What proves something is what nobody could have known
afterwards: kernels, the signs of γ, and images, all tied to a commitment of
which it is known how old it is (Section 3.2).
"""

from keras_passport.lazy import exported

__getattr__, __dir__, __all__ = exported(
    __name__,
    {
        "Claim": "claims",
        "Evidence": "verification",
        "Opening": "claims",
        "Record": "records",
        "Signature": "claim_secret",
        "Step": "report",
        "VerificationReport": "report",
        "attach": "claims",
        "attached": "claims",
        "claim": "claims",
        "new_secret": "claim_secret",
        "page": None,
        "passport_seed": "claim_secret",
        "record": "records",
        "verify": "verification",
    },
)
