"""Small members of the paper's four families for the birds. Each trains within an hour on two CPU cores.

They take images of 256 px. Like the large ones they have four stages of strides 4, 8, 16 and 32, but at most half of
the width and depth.
"""

from torch import Tensor, nn

SIDE = 256


def small_resnet(num_classes: int) -> nn.Module:
    """Build a ResNet with one basic block per stage, 32 to 256 channels and timm's deep stem."""
    from timm.models.resnet import BasicBlock, ResNet

    widths = (32, 64, 128, 256)
    return ResNet(BasicBlock, (1, 1, 1, 1), num_classes, channels=widths, stem_type="deep", stem_width=12)  # type: ignore[arg-type]


def small_vgg(num_classes: int) -> nn.Module:
    """Build a VGG11 of a quarter of the width with batch norms. It ends in a mean and one linear layer."""
    from torchvision.models import VGG

    layers: list[nn.Module] = []
    channels = 3
    for widths in ((16,), (32,), (64, 64), (128, 128), (128, 128)):
        for width in widths:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    model = VGG(nn.Sequential(*layers))
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.classifier = nn.Linear(channels, num_classes)
    return model


class _Last(nn.Module):
    """(B,C,h,w) -> (B,h,w,C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


def _stem(width: int) -> list[nn.Module]:
    """Build two strided convolutions with batch norms, instead of 4x4 patches.

    A network with layer norms then learns several times faster from random weights.

    Source: Xiao et al. 2021, https://arxiv.org/abs/2106.14881
    """
    return [
        nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width // 2),
        nn.ReLU(),
        nn.Conv2d(width // 2, width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
    ]


def small_swin(num_classes: int) -> nn.Module:
    """Build a Swin with two blocks per stage, 24 to 192 channels and windows of 8x8 tokens, for any image size."""
    from timm.models.swin_transformer import SwinTransformer

    model = SwinTransformer(
        img_size=SIDE,
        embed_dim=24,
        depths=(2, 2, 2, 2),
        num_heads=(1, 2, 4, 8),
        window_size=8,
        num_classes=num_classes,
        strict_img_size=False,
    )
    model.patch_embed = nn.Sequential(*_stem(24), _Last())
    return model


def small_convnext(num_classes: int) -> nn.Module:
    """Build a ConvNeXt with two blocks per stage and 24 to 192 channels. Layer scale is for deep networks only."""
    from timm.models.convnext import ConvNeXt

    model = ConvNeXt(depths=(2, 2, 2, 2), dims=(24, 48, 96, 192), num_classes=num_classes, ls_init_value=None)
    model.stem = nn.Sequential(*_stem(24))
    return model
