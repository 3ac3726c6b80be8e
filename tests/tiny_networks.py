"""Small networks with random weights for the tests."""

import torch
from torch import nn


class TinyNet(nn.Module):
    """Four strided convolutions with a smooth activation function, named as in a ResNet, and a global average."""

    def __init__(self, num_classes: int = 6, width: int = 8, activation: type[nn.Module] = nn.GELU):
        super().__init__()
        channels = [3, width, 2 * width, 3 * width, 4 * width]
        for i in range(4):
            block = nn.Sequential(
                nn.Conv2d(channels[i], channels[i + 1], 3, stride=2, padding=1),
                nn.BatchNorm2d(channels[i + 1]),
                activation(),
            )
            self.add_module(f"layer{i + 1}", block)
        self.fc = nn.Linear(channels[4], num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i in range(4):
            x = getattr(self, f"layer{i + 1}")(x)
        return self.fc(x.mean((2, 3)))


LAYERS = ("layer1", "layer2", "layer3", "layer4")


def tiny_net(seed: int = 0, spread: float = 3.0, **options) -> TinyNet:
    """Return a TinyNet in evaluation mode. The standard deviation of its logits over images is `spread`."""
    torch.manual_seed(seed)
    model = TinyNet(**options)
    images, _ = batch(16, seed=100)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model(images)
        model.eval()
        logits = model(images)
        model.fc.weight *= spread / logits.std(0)[:, None]
        model.fc.bias -= model(images).mean(0)
    return model


def batch(n: int = 3, height: int = 48, width: int = 48, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return smooth random images (n,3,H,W) and target classes 0 to 5."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, 3, 6, 6, generator=generator)
    images = nn.functional.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    noise = 0.3 * torch.randn(n, 3, height, width, generator=generator)
    return images + noise, torch.arange(n) % 6
