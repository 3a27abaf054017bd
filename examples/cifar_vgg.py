"""Protects a VGG with batch normalisation with a passport.

The same job as cifar_resnet.py, with the same flags; the paper's tables name
this network VGGNet.

    python examples/cifar_vgg.py --passport=random_image
    python examples/cifar_vgg.py --dataset=digits --depth=11 --width=16
"""

from absl import flags

from common import networks, trainer
from common.errors import run_program

_DEPTH = flags.DEFINE_enum(
    "depth", "16", [str(depth) for depth in networks.VGG_STAGES], "Layers."
)
_WIDTH = flags.DEFINE_integer(
    "width", 64, "Channels of the first stage; the paper's has 64.", 1
)


def main(_):
    trainer.main(
        "vgg", networks.vgg, depth=int(_DEPTH.value), width=_WIDTH.value
    )


if __name__ == "__main__":
    run_program(main)
