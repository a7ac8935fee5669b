"""MagDiff's U-Net in torch, for parity: diffusers' Stable Diffusion network, frames folded into its batch, with the layers
that the released code (diffusers 0.14) adds, under its names. The golden file judges it before it judges us.
"""

from functools import partial
from types import MethodType

import numpy as np

from helpers_torch import diffusers, torch

nn = torch.nn


class ClipNorm(nn.GroupNorm):
    """GroupNorm over the frames of a clip together."""

    def __init__(self, norm: nn.GroupNorm, clip: dict):
        super().__init__(norm.num_groups, norm.num_channels, norm.eps)
        self.clip = clip

    def forward(self, x):
        return fold(super().forward(unfold(x, self.clip["frames"])))


class Stack(nn.Module):
    """Four times norm, SiLU, dropout and a convolution over time; nothing for a single frame."""

    def __init__(self, width: int, clip: dict):
        super().__init__()
        conv = lambda: nn.Conv3d(width, width, (3, 1, 1), padding=(1, 0, 0))
        self.convs = nn.Sequential(*(m for _ in range(4) for m in (nn.GroupNorm(32, width), nn.SiLU(), nn.Dropout(0.1), conv())))
        self.clip = clip

    def forward(self, x):
        frames = self.clip["frames"]
        return x + fold(self.convs(unfold(x, frames))) * (frames > 1)


def unfold(x, frames: int):
    """(b t) c h w -> b c t h w."""
    return x.unflatten(0, (-1, frames)).transpose(1, 2)


def fold(x):
    return x.transpose(1, 2).flatten(0, 1)


def positions(frames: int, width: int):
    """sin and cos in turn."""
    angles = np.arange(frames)[:, None] / 10000 ** (np.arange(0, width, 2) / width)
    return torch.from_numpy(np.stack([np.sin(angles), np.cos(angles)], -1).reshape(frames, width)).float()


def epaf(self, x, context, n: int):
    """Text and picture with keys and values of their own, behind one query: the context is split after n tokens."""
    split = lambda y: y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
    attend = lambda k, v: nn.functional.scaled_dot_product_attention(split(self.to_q(x)), split(k), split(v))
    text, image = context[:, :n], context[:, n:]
    y = self.text_cross_attention_scale * attend(self.to_k(text), self.to_v(text))
    y = y + self.image_cross_attention_scale * attend(self.to_k_ip(image), self.to_v_ip(image))
    return self.to_out[0](y.transpose(1, 2).flatten(2))


def block(self, x, encoder_hidden_states, **_):
    """Spatial and cross-attention, then attention over time between the frames of a pixel, then the feed-forward."""
    frames = self.clip["frames"]
    x = x + self.attn1(self.norm1(x))
    x = x + epaf(self.attn2, self.norm2(x), encoder_hidden_states, self.clip["text"])
    x = (x.unflatten(0, (-1, frames)) + positions(frames, x.shape[-1])[None, :, None]).flatten(0, 1)
    over_time = lambda y: y.unflatten(0, (-1, frames)).transpose(1, 2).flatten(0, 1)  # (b t) n c -> (b n) t c
    over_space = lambda y: y.unflatten(0, (-1, x.shape[1])).transpose(1, 2).flatten(0, 1)
    x = x + over_space(self.temp_attn(over_time(self.temp_norm(x)))) * (frames > 1)
    return x + self.ff(self.norm3(x))


def unet(channels, layers: int, attention_levels, heads, context: int):
    """The module; call it by `run`."""
    clip = {}
    module = diffusers.UNet2DConditionModel(
        in_channels=8,
        block_out_channels=channels,
        layers_per_block=layers,
        cross_attention_dim=context,
        attention_head_dim=heads,
        use_linear_projection=True,
        down_block_types=["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention_levels],
        up_block_types=["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention_levels)],
    )
    for part in (*module.down_blocks, module.mid_block, *module.up_blocks):
        part.temp_convs = nn.ModuleList(Stack(r.out_channels, clip) for r in part.resnets)
        for res, stack in zip(part.resnets, part.temp_convs, strict=True):
            res.norm1, res.norm2 = ClipNorm(res.norm1, clip), ClipNorm(res.norm2, clip)
            res.register_forward_hook(lambda _, __, y, stack=stack: stack(y))
        for transformer in getattr(part, "attentions", []):
            for b in transformer.transformer_blocks:
                width, cross = b.attn1.to_q.in_features, b.attn2
                b.temp_attn = type(cross)(width, heads=cross.heads, dim_head=width // cross.heads)
                b.temp_norm = nn.LayerNorm(width)
                cross.to_k_ip, cross.to_v_ip = (nn.Linear(context, width, bias=False) for _ in range(2))
                cross.text_cross_attention_scale = nn.Parameter(torch.ones(1))
                cross.image_cross_attention_scale = nn.Parameter(torch.full((1,), 1.5))
                b.clip, b.forward = clip, MethodType(block, b)
    module.conv_norm_out = ClipNorm(module.conv_norm_out, clip)
    module.clip = clip
    return module


def run(module, x, time, text, image):
    """x (b t h w 8), text and image (b n c) -> (b t h w 4)."""
    frames = x.shape[1]
    module.clip.update(frames=frames, text=text.shape[1])
    each = lambda y: y.repeat_interleave(frames, 0)
    context = each(torch.cat([text, image], 1))
    y = module(x.flatten(0, 1).permute(0, 3, 1, 2), each(time), encoder_hidden_states=context).sample
    return y.permute(0, 2, 3, 1).unflatten(0, (-1, frames))


class Resampler(nn.Module):
    """The released Perceiver resampler of image tokens, under its names."""

    def __init__(self, reads: int, width: int, queries: int, depth: int, heads: int, head_dim: int, out: int):
        super().__init__()
        plain = partial(nn.Linear, bias=False)
        inner, self.heads = heads * head_dim, heads
        self.latents = nn.Parameter(torch.randn(1, queries, width))
        self.proj_in, self.proj_out, self.norm_out = nn.Linear(reads, width), nn.Linear(width, out), nn.LayerNorm(out)

        def asked():
            parts = dict(norm1=nn.LayerNorm(width), norm2=nn.LayerNorm(width))
            return nn.ModuleDict(parts | dict(to_q=plain(width, inner), to_kv=plain(width, 2 * inner), to_out=plain(inner, width)))

        feed = lambda: nn.Sequential(nn.LayerNorm(width), plain(width, 4 * width), nn.GELU(), plain(4 * width, width))
        self.layers = nn.ModuleList(nn.ModuleList([asked(), feed()]) for _ in range(depth))

    def forward(self, x):
        x, y = self.proj_in(x), self.latents.expand(len(x), -1, -1)
        split = lambda z: z.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        for part, feed in self.layers:
            asks = part["norm2"](y)
            k, v = part["to_kv"](torch.cat([part["norm1"](x), asks], 1)).chunk(2, -1)
            found = nn.functional.scaled_dot_product_attention(split(part["to_q"](asks)), split(k), split(v))
            y = y + part["to_out"](found.transpose(1, 2).flatten(2))
            y = y + feed(y)
        return self.norm_out(self.proj_out(y))
