"""Small members of the paper's four families, for the birds: each learns them on two CPU cores within an hour.

Each builds `network(num_classes)`, takes 256 px images, and has four stages of strides 4, 8, 16 and 32, as its larger
sister has, with half or less of the width and depth.
"""

from torch import Tensor, nn

SIDE = 256


def small_resnet(num_classes: int) -> nn.Module:
    """A ResNet of one basic block a stage, 32 to 256 channels wide, with timm's deep stem."""
    from timm.models.resnet import BasicBlock, ResNet

    widths = (32, 64, 128, 256)
    return ResNet(BasicBlock, (1, 1, 1, 1), num_classes, channels=widths, stem_type="deep", stem_width=12)  # type: ignore[arg-type]  # the class is meant


def small_vgg(num_classes: int) -> nn.Module:
    """A VGG11 of a quarter of the width, with batch norm and, for its 4096-wide layers, a mean and one linear layer."""
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
    """Two strided convolutions with batch norm in the place of 4 x 4 patches (Xiao et al. 2021).

    Without pretrained weights a network with layer norms learns several times faster so.
    """
    return [
        nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width // 2),
        nn.ReLU(),
        nn.Conv2d(width // 2, width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
    ]


def small_swin(num_classes: int) -> nn.Module:
    """A Swin Transformer of two blocks a stage, 24 to 192 channels wide, windows of 8 x 8 tokens, for images of any size."""
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
    """A ConvNeXt of two blocks a stage, 24 to 192 channels wide, without layer scale, which is for deep ones."""
    from timm.models.convnext import ConvNeXt

    model = ConvNeXt(depths=(2, 2, 2, 2), dims=(24, 48, 96, 192), num_classes=num_classes, ls_init_value=None)
    model.stem = nn.Sequential(*_stem(24))
    return model
