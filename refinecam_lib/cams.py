"""Class activation maps: functions of a Capture that return one raw map (B,h,w) per layer, shallow to deep.

>>> shallow, *_, deep = grad_cam(Capture(model, inputs, target, layers))

A new method reads `capture.activations` and `capture.gradients` and returns a list.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .capture import Capture, Maps
from .networks.inference import forward, forward_chunk


def _weighted(weights: Tensor, activations: Tensor) -> Tensor:
    return (weights * activations).sum(1).relu()


def grad_cam(capture: Capture) -> Maps:
    """Grad-CAM: ReLU of the activations, each channel weighted by its mean gradient.

    Source: Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391
    """
    return [_weighted(g.mean((2, 3), keepdim=True), a) for a, g in zip(capture.activations, capture.gradients)]


def hires_cam(capture: Capture) -> Maps:
    """HiResCAM: ReLU of the sum over channels of gradient times activation.

    Source: Draelos and Carin 2020, https://arxiv.org/abs/2011.08891
    """
    return [_weighted(g, a) for a, g in zip(capture.activations, capture.gradients)]


def layer_cam(capture: Capture) -> Maps:
    """LayerCAM: ReLU of the activations, each pixel weighted by its positive gradient.

    Source: Jiang et al. 2021, https://doi.org/10.1109/TIP.2021.3089943
    """
    return [_weighted(g.relu(), a) for a, g in zip(capture.activations, capture.gradients)]


def grad_cam_pp(capture: Capture, eps: float = 1e-6) -> Maps:
    """Grad-CAM++: positive gradients weighted by the closed form for an exponential score.

    Args:
        capture: The batch. Signed activations make the denominator cross zero, where rounding decides the map. The
            registry therefore runs this method in float64.
        eps: Added to the denominator. It is part of the definition in use: it decides the map where gradients are small.

    Source: Chattopadhay et al. 2018, https://arxiv.org/abs/1710.11063
    """

    def one(a: Tensor, g: Tensor) -> Tensor:
        denominator = 2 * g**2 + a.sum((2, 3), keepdim=True) * g**3 + eps
        alpha = torch.where(g != 0, g**2 / denominator, 0)
        return _weighted((alpha * g.relu()).sum((2, 3), keepdim=True), a)

    return [one(a, g) for a, g in zip(capture.activations, capture.gradients)]


def shapley_cam(capture: Capture) -> Maps:
    """ShapleyCAM: Grad-CAM with weights corrected by half a Hessian-vector product, mean(g - H·A / 2).

    The score is the logit plus the log-softmax (ReST). With the logit alone the Hessian of a ReLU network is zero.
    Departs from the published code, whose gradient loses its graph (see the audit notebook).

    Source: Cai 2025, https://arxiv.org/abs/2501.06261
    """
    outputs, logits = capture.graph
    index = capture.target[:, None]
    weights = []
    with torch.enable_grad():
        score = (logits.gather(1, index) + logits.log_softmax(1).gather(1, index)).sum()
        gradients = capture.gradients_of(score, outputs, create_graph=True)
        for output, gradient in zip(outputs, gradients):
            # One layer at a time. A product shared by all layers would contain their cross derivatives.
            product = torch.autograd.grad((gradient * output.detach()).sum(), output, retain_graph=True)[0]
            weights.append(gradient.detach() - product / 2)
    activations = capture.as_maps([output.detach() for output in outputs])
    return [_weighted(w.mean((2, 3), keepdim=True), a) for w, a in zip(capture.as_maps(weights), activations)]


def score_cam(capture: Capture, chunk: int | None = None) -> Maps:
    """ScoreCAM: each channel weighted by the softmax of the target's logit on the image masked by that channel.

    The channel is upsampled with aligned corners and min-max scaled. No baseline is subtracted: softmax ignores it.
    Every channel is used, and only the logits of all channels are kept.

    Args:
        capture: The batch.
        chunk: Images per forward pass; None takes `forward_chunk`.

    Source: Wang et al. 2020, https://arxiv.org/abs/1910.01279
    """
    maps, chunk = [], chunk or forward_chunk(capture.inputs.device)
    with torch.no_grad():
        for number, activations in enumerate(capture.activations):
            if number not in capture.channel_logits:
                capture.channel_logits[number] = [
                    _channel_logits(capture.classifier, x, a, chunk) for x, a in zip(capture.inputs, activations)
                ]
            logits = capture.channel_logits[number]
            scores = torch.stack([each[:, c] for each, c in zip(logits, capture.target)])
            maps.append(_weighted(scores.softmax(1)[:, :, None, None], activations))
    return maps


def _channel_logits(model: nn.Module, x: Tensor, channels: Tensor, chunk: int) -> Tensor:
    """Compute the logits (C,K) on the image (3,H,W) masked by each of its channels (C,h,w)."""
    logits = []
    for part in channels.split(chunk):
        up = F.interpolate(part[:, None], size=x.shape[-2:], mode="bilinear", align_corners=True)
        low, high = up.amin((2, 3), keepdim=True), up.amax((2, 3), keepdim=True)
        masked = x * ((up - low) / (high - low + 1e-8))
        logits.append(forward(model, masked.to(x.dtype)))
    return torch.cat(logits)
