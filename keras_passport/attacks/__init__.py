"""Attacks on protected models: what each family leaves of the protection.

An attack gets the model, of which it uses what `kp.public` shows, and data;
it is handed no passport. Its accuracy is measured on data that nothing was
chosen by.
"""

from keras_passport.attacks.fake import fake_passports
from keras_passport.attacks.forgery import forge_passport, key_forgery
from keras_passport.attacks.opened import Opened
from keras_passport.attacks.result import AttackResult
from keras_passport.attacks.reverse import reverse_engineering
from keras_passport.attacks.rewrites import (
    Rewrite,
    flip_signs,
    permute_channels,
    scale_filters,
)
from keras_passport.attacks.spectral import spectral, spectral_directions
from keras_passport.attacks.statistics import (
    match_statistics,
    statistics_matching,
)
from keras_passport.attacks.training import Recipe

__all__ = [
    "AttackResult",
    "Opened",
    "Recipe",
    "Rewrite",
    "fake_passports",
    "flip_signs",
    "forge_passport",
    "key_forgery",
    "match_statistics",
    "permute_channels",
    "reverse_engineering",
    "scale_filters",
    "spectral",
    "spectral_directions",
    "statistics_matching",
]
