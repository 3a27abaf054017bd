"""`evaluate`: tries every attack on a protected model, and judges what is left.

It is the owner's: it has the passport, and says what each attacker is given.
"""

from keras_passport.lazy import exported

__getattr__, __dir__, __all__ = exported(
    __name__,
    {
        "ATTACKS": "registry",
        "Attack": "budgets",
        "Budget": "budgets",
        "Case": "case",
        "Evaluation": "evaluating",
        "LEVELS": "battery",
        "Level": "battery",
        "Progress": "progress",
        "Records": "records",
        "evaluate": "evaluating",
    },
)
