"""Protects an AlexNet with batch normalisation with a passport.

The same job as cifar_resnet.py, with the same flags. The fully connected
layers have passports too.

    python examples/cifar_alexnet.py --passport=random_image
    python examples/cifar_alexnet.py --dataset=digits --width=16
"""

from absl import flags

from common import networks, trainer
from common.errors import run_program

_WIDTH = flags.DEFINE_integer(
    "width", 64, "Channels of the first convolution; the paper's has 64.", 1
)


def main(_):
    trainer.main("alexnet", networks.alexnet, width=_WIDTH.value)


if __name__ == "__main__":
    run_program(main)
