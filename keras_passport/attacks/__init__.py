"""Attacks on protected models: what each family leaves of the protection.

An attack gets the model, whose bound keys it does not look at, and data; it
is handed no passport.
"""

from keras_passport.attacks.fake import fake_passports
from keras_passport.attacks.result import AttackResult

__all__ = ["AttackResult", "fake_passports"]
