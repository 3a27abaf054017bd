"""`python -m keras_passport` is the command `keras-passport`."""

from keras_passport.cli.parser import run

run()
