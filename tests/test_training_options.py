"""What attacks that train can be told, and what they say of it."""

import dataclasses

import pytest

import keras_passport as kp
from keras_passport.attacks import labelled
from keras_passport.attacks.options import TrainingOptions
from keras_passport.attacks.recipe import Recipe
from support.attack_targets import target

RECIPE = Recipe(epochs=1, batch_size=20)


class TestOf:
    def test_an_attacks_own_values_give_way(self):
        own = {"recipe": RECIPE, "restarts": 3}
        assert TrainingOptions.of(None, {}, **own) == TrainingOptions(**own)
        changed = TrainingOptions.of(None, {"restarts": 2}, **own)
        assert changed == TrainingOptions(recipe=RECIPE, restarts=2)
        given = TrainingOptions(fraction=0.5, seed=3)
        made = TrainingOptions.of(given, {"seed": 4}, **own)
        # Who gives options has said how often; the recipe may be left open.
        assert made == dataclasses.replace(given, seed=4, recipe=RECIPE)
        other = dataclasses.replace(RECIPE, epochs=2)
        given = dataclasses.replace(given, recipe=other)
        assert TrainingOptions.of(given, {}, **own).recipe is other

    def test_what_says_nothing_to_an_attack_is_refused(self):
        for changes in ({"start": "fake"}, {"epochs": 3}):
            with pytest.raises(TypeError, match=f"Received: .*{[*changes][0]}"):
                TrainingOptions.of(None, changes, unused=("start",))

    def test_they_are_frozen(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            TrainingOptions().seed = 1


@pytest.mark.parametrize(
    "attack", ["reverse_engineering", "fine_tuning", "from_scratch"]
)
def test_options_and_keywords_are_the_same(attack):
    model, _, data, test = target(count=30)
    fields = {"recipe": RECIPE, "fraction": 0.5, "seed": 2}
    attack = getattr(kp.attacks, attack)
    by_options = attack(model, data, test, TrainingOptions(**fields))
    by_names = attack(model, data, test, **fields)
    assert by_options.history == by_names.history
    assert by_options.accuracies == by_names.accuracies
    shared = labelled.share(data, fields["fraction"], fields["seed"])
    assert by_options.budget["images"] == len(shared[1]) < 30
