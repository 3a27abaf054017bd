"""What the example programs share: data, networks, training, the run.

Importing it imports Keras, without TensorFlow's greeting.
"""

import os

from keras_passport.cli.quiet import quiet

# What TensorFlow tells is not the user's concern, but for errors.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
with quiet():
    import keras  # noqa: F401
