"""Swin on training windows of fewer tokens than its own windows hold: 56 px end in 2 x 2 tokens, timm fills up 7 x 7.

The filling is two fifths of such a window's cost, and takes part in attention, which no whole image of 224 px shows.
"""

import torch
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn
from torch.nn import functional


class _Fitted(SwinTransformerBlock):
    def _attn(self, x: Tensor) -> Tensor:
        batch, rows, columns, channels = x.shape
        if rows >= self.window_size[0] or columns >= self.window_size[1]:
            return super()._attn(x)
        attn = self.attn
        within = torch.arange(self.window_area, device=x.device).view(self.window_size)[:rows, :columns].flatten()
        bias = attn._get_rel_pos_bias()[..., within, :][..., within]
        q, k, v = attn.qkv(x).reshape(batch, rows * columns, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return attn.proj(seen.transpose(1, 2).reshape(batch, rows, columns, channels))


def fit_windows(model: nn.Module) -> nn.Module:
    """timm's Swin Transformer, in place: in maps smaller than a window, tokens attend to those that there are.

    A map (B,h,w,C) with h or w at least a window's is computed as before, so nothing changes for whole images.
    """
    for module in model.modules():
        if isinstance(module, SwinTransformerBlock):
            module.__class__ = _Fitted
    return model
