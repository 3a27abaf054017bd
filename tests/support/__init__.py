"""What several test files share. Test files import nothing from one another.

Where the truth about what is tested is computed (`truth`, `plain_models`),
nothing of `keras_passport` is used.
"""
