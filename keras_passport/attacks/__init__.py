"""Attacks on protected models: what each family leaves of the protection.

An attack gets the model, of which it uses what `kp.public` shows, and data;
it is handed no passport. Its accuracy is measured on data that nothing was
chosen by.
"""

from keras_passport.attacks.aligning import with_rows_of
from keras_passport.attacks.ambiguity import ambiguity
from keras_passport.attacks.fake import fake_passports
from keras_passport.attacks.finetuning import (
    fine_tuning,
    fresh_normalization,
    from_scratch,
)
from keras_passport.attacks.forgery import forge_passport, key_forgery
from keras_passport.attacks.guessing import guess_images
from keras_passport.attacks.opened import Opened
from keras_passport.attacks.options import TrainingOptions
from keras_passport.attacks.orienting import Orientation, orientation
from keras_passport.attacks.pruning import prune, pruning
from keras_passport.attacks.recipe import Recipe
from keras_passport.attacks.relatives import (
    ancestor_alone,
    ancestor_fine_tuned,
    difference,
    difference_directions,
    known_ancestor,
)
from keras_passport.attacks.result import (
    Advantage,
    AttackResult,
    advantage,
)
from keras_passport.attacks.reverse import reverse_engineering
from keras_passport.attacks.rewrites import (
    Rewrite,
    flip_signs,
    permute_channels,
    scale_filters,
)
from keras_passport.attacks.searching import Search
from keras_passport.attacks.signs import sign_search
from keras_passport.attacks.spectral import spectral, spectral_directions
from keras_passport.attacks.statistics import (
    match_statistics,
    statistics_matching,
)
from keras_passport.attacks.tuning import tune_reverse_engineering, tuned

__all__ = [
    "Advantage",
    "AttackResult",
    "Opened",
    "Orientation",
    "Recipe",
    "Rewrite",
    "Search",
    "TrainingOptions",
    "advantage",
    "ambiguity",
    "ancestor_alone",
    "ancestor_fine_tuned",
    "difference",
    "difference_directions",
    "fake_passports",
    "fine_tuning",
    "flip_signs",
    "forge_passport",
    "fresh_normalization",
    "from_scratch",
    "guess_images",
    "key_forgery",
    "known_ancestor",
    "match_statistics",
    "orientation",
    "permute_channels",
    "prune",
    "pruning",
    "reverse_engineering",
    "scale_filters",
    "sign_search",
    "spectral",
    "spectral_directions",
    "statistics_matching",
    "tune_reverse_engineering",
    "tuned",
    "with_rows_of",
]
