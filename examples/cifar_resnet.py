"""Protects a ResNet with a passport, and tries fake passports on it.

CIFAR-10 with a ResNet-20, about two minutes an epoch on two cores:

    python examples/cifar_resnet.py --passport=random_image

The digits, which need no download and take a few minutes:

    python examples/cifar_resnet.py --dataset=digits

The paper's network, in the precision that a GPU likes:

    python examples/cifar_resnet.py --dataset=cifar10 --depth=18 --width=64 \
        --epochs=200 --mixed_precision=bfloat16

With one's own pictures as the passport:

    python examples/cifar_resnet.py --passport=fixed_image \
        --identity_images=logo.png,portrait.jpg

Interrupted runs go on when they are started again with the same flags.
"""

from absl import flags

from common import networks, trainer
from common.errors import run_program

_DEPTH = flags.DEFINE_integer(
    "depth", None, "8, 14, 20, ... (6n + 2), or 18 for the paper's ResNet-18."
)
_WIDTH = flags.DEFINE_integer(
    "width", 16, "Channels of the first stage; the paper's has 64.", 1
)


@flags.validator("depth")
def _is_resnet_depth(depth: int | None) -> bool:
    try:
        return depth is None or bool(networks.resnet_stages(depth))
    except ValueError as error:
        raise flags.ValidationError(str(error)) from error


def main(_):
    trainer.main(
        "resnet", networks.resnet, depth=_DEPTH.value, width=_WIDTH.value
    )


if __name__ == "__main__":
    run_program(main)
