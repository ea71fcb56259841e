"""pose-HRNet, the detection version of Swin and detectron2's ResNet as published, as plain functions of a state dict.

Written from the papers and the published descriptions of the networks, to compare the libraries' networks with. They
read weights by the original names, so that they test the renaming too.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = Mapping[str, Tensor]


def random_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights that keep activations near 1 and leave no parameter at a value that would hide it."""
    weights = {}
    for name, shape in shapes.items():
        if name.endswith("running_var"):
            weights[name] = torch.rand(shape) + 0.5
        elif name.endswith("num_batches_tracked"):
            weights[name] = torch.tensor(0)
        elif len(shape) > 1:
            weights[name] = torch.randn(shape) * torch.tensor(shape[1:]).prod().rsqrt()
        else:
            weights[name] = torch.randn(shape) * 0.1 + (1.0 if name.endswith("weight") else 0.0)
    return weights


# ---- pose-HRNet (Sun et al. 2019) --------------------------------------------------------------------------------


def pose_hrnet(weights: Weights, image_BCHW: Tensor) -> list[Tensor]:
    """The four branches behind stage 4, all of them fused."""
    x = conv_norm(weights, "conv1", "bn1", image_BCHW, stride=2).relu()
    x = conv_norm(weights, "conv2", "bn2", x, stride=2).relu()
    for block in range(_count(weights, "layer1")):
        x = _bottleneck(weights, f"layer1.{block}", x)
    branches = [x]
    for stage in (2, 3, 4):
        branches = _transition(weights, f"transition{stage - 1}", branches, num_branches=stage)
        for module in range(_count(weights, f"stage{stage}")):
            branches = _exchange(weights, f"stage{stage}.{module}", branches)
    return branches


def conv_norm(weights: Weights, conv: str, norm: str, x: Tensor, stride: int = 1, eps: float = 1e-5) -> Tensor:
    kernel = weights[f"{conv}.weight"]
    x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
    mean, variance = weights[f"{norm}.running_mean"], weights[f"{norm}.running_var"]
    return F.batch_norm(x, mean, variance, weights[f"{norm}.weight"], weights[f"{norm}.bias"], eps=eps)


def _count(weights: Weights, prefix: str) -> int:
    return len({name.removeprefix(f"{prefix}.").split(".")[0] for name in weights if name.startswith(f"{prefix}.")})


def _bottleneck(weights: Weights, name: str, x: Tensor) -> Tensor:
    y = conv_norm(weights, f"{name}.conv1", f"{name}.bn1", x).relu()
    y = conv_norm(weights, f"{name}.conv2", f"{name}.bn2", y).relu()
    y = conv_norm(weights, f"{name}.conv3", f"{name}.bn3", y)
    if f"{name}.downsample.0.weight" in weights:
        x = conv_norm(weights, f"{name}.downsample.0", f"{name}.downsample.1", x)
    return (x + y).relu()


def _transition(weights: Weights, name: str, branches: list[Tensor], num_branches: int) -> list[Tensor]:
    """Branches whose width changes pass a 3x3 convolution; a new one is a strided convolution of the coarsest."""
    found = []
    for index in range(num_branches):
        if index < len(branches):
            is_identity = f"{name}.{index}.0.weight" not in weights
            kept = branches[index]
            found.append(
                kept if is_identity else conv_norm(weights, f"{name}.{index}.0", f"{name}.{index}.1", kept).relu()
            )
        else:
            prefix = f"{name}.{index}.0"
            found.append(conv_norm(weights, f"{prefix}.0", f"{prefix}.1", branches[-1], stride=2).relu())
    return found


def _exchange(weights: Weights, name: str, branches: list[Tensor]) -> list[Tensor]:
    """Basic blocks on each branch, then each branch the sum of all, brought to its resolution."""
    outputs = []
    for index, x in enumerate(branches):
        for block in range(_count(weights, f"{name}.branches.{index}")):
            prefix = f"{name}.branches.{index}.{block}"
            y = conv_norm(weights, f"{prefix}.conv1", f"{prefix}.bn1", x).relu()
            x = (x + conv_norm(weights, f"{prefix}.conv2", f"{prefix}.bn2", y)).relu()
        outputs.append(x)
    fused = []
    for to in range(len(outputs)):
        total = torch.zeros(())
        for source, x in enumerate(outputs):
            prefix = f"{name}.fuse_layers.{to}.{source}"
            if source > to:
                x = conv_norm(weights, f"{prefix}.0", f"{prefix}.1", x)
                x = F.interpolate(x, scale_factor=2 ** (source - to), mode="nearest")
            for step in range(to - source):
                x = conv_norm(weights, f"{prefix}.{step}.0", f"{prefix}.{step}.1", x, stride=2)
                x = x if step == to - source - 1 else x.relu()
            total = total + x
        fused.append(total.relu())
    return fused


# ---- Swin Transformer for detection (Liu et al. 2021) ------------------------------------------------------------


def swin(weights: Weights, image_BCHW: Tensor, window: int, num_heads: tuple[int, ...]) -> list[Tensor]:
    """The normalized features of the four stages."""
    x = F.conv2d(image_BCHW, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=4)
    x = _layer_norm(weights, "patch_embed.norm", x.permute(0, 2, 3, 1))
    features = []
    for layer, heads in enumerate(num_heads):
        for block in range(_count(weights, f"layers.{layer}.blocks")):
            x = _swin_block(
                weights, f"layers.{layer}.blocks.{block}", x, window, heads, shift=block % 2 * (window // 2)
            )
        features.append(_layer_norm(weights, f"norm{layer}", x).permute(0, 3, 1, 2))
        if layer < len(num_heads) - 1:
            x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
            x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], dim=-1)
            x = _layer_norm(weights, f"layers.{layer}.downsample.norm", x)
            x = x @ weights[f"layers.{layer}.downsample.reduction.weight"].T
    return features


def _layer_norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-5)


def _linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _swin_block(weights: Weights, name: str, x: Tensor, window: int, heads: int, shift: int) -> Tensor:
    """Attention in windows of the padded and, in every other block, rolled map; then the MLP."""
    height, width = x.shape[1:3]
    y = _layer_norm(weights, f"{name}.norm1", x)
    y = F.pad(y, (0, 0, 0, -width % window, 0, -height % window))
    rows, columns = y.shape[1] // window, y.shape[2] // window
    y = y.roll((-shift, -shift), (1, 2))
    # (B, rows, columns, tokens, C)
    y = y.unflatten(2, (columns, window)).unflatten(1, (rows, window)).transpose(2, 3).flatten(3, 4)
    qkv = _linear(weights, f"{name}.attn.qkv", y).unflatten(-1, (3, heads, -1)).movedim(-3, 0).transpose(-2, -3)
    query, key, value = qkv
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + _position_bias(weights, name, window)
    if shift:
        scores = scores + _shift_mask(rows, columns, window, shift)[:, :, None]
    y = (scores.softmax(-1) @ value).transpose(-2, -3).flatten(-2)
    y = _linear(weights, f"{name}.attn.proj", y)
    y = y.unflatten(3, (window, window)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    x = x + y.roll((shift, shift), (1, 2))[:, :height, :width]
    hidden = F.gelu(_linear(weights, f"{name}.mlp.fc1", _layer_norm(weights, f"{name}.norm2", x)))
    return x + _linear(weights, f"{name}.mlp.fc2", hidden)


def relative_positions(window: int) -> Tensor:
    """(tokens, tokens): row of a bias table for every pair of tokens, by their distance in rows and columns."""
    token = torch.arange(window * window)
    row = token[:, None] // window - token // window + window - 1
    column = token[:, None] % window - token % window + window - 1
    return row * (2 * window - 1) + column


def _position_bias(weights: Weights, name: str, window: int) -> Tensor:
    """(heads, tokens, tokens)."""
    return weights[f"{name}.attn.relative_position_bias_table"][relative_positions(window)].permute(2, 0, 1)


def _shift_mask(rows: int, columns: int, window: int, shift: int) -> Tensor:
    """(rows, columns, tokens, tokens): -100 between tokens that are neighbors only because the map was rolled."""

    def region(size: int) -> Tensor:
        position = torch.arange(size)
        return (position >= size - window).long() + (position >= size - shift).long()

    cell = region(rows * window)[:, None] * 3 + region(columns * window)
    tokens = cell.unflatten(1, (columns, window)).unflatten(0, (rows, window)).transpose(1, 2).flatten(2)
    return torch.where(tokens[..., :, None] == tokens[..., None, :], 0.0, -100.0)


# ---- detectron2's ResNet with its stride in the 3x3 convolution ----------------------------------------------------


def resnet(weights: Weights, image_BCHW: Tensor) -> list[Tensor]:
    """res2 to res5."""
    x = conv_norm(weights, "stem.conv1", "stem.conv1.norm", image_BCHW, stride=2).relu()
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    features = []
    for stage in range(2, 6):
        for block in range(_count(weights, f"res{stage}")):
            name, stride = f"res{stage}.{block}", 2 if stage > 2 and block == 0 else 1
            y = conv_norm(weights, f"{name}.conv1", f"{name}.conv1.norm", x).relu()
            y = conv_norm(weights, f"{name}.conv2", f"{name}.conv2.norm", y, stride).relu()
            y = conv_norm(weights, f"{name}.conv3", f"{name}.conv3.norm", y)
            if f"{name}.shortcut.weight" in weights:
                x = conv_norm(weights, f"{name}.shortcut", f"{name}.shortcut.norm", x, stride)
            x = (x + y).relu()
        features.append(x)
    return features
