"""ImageNet weights for a backbone: from the cache, else downloaded, else one clear error."""

from __future__ import annotations

import contextlib
import logging
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import timm
from huggingface_hub import constants, try_to_load_from_cache

from querypose.d2 import CfgNode
from querypose.modeling.backbone.bottom_up import BackboneError

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
"""How long a server may take to answer before it counts as out of reach."""

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of a timm model's weights on the Hugging Face hub, the preferred one first."""


def wants_pretrained(cfg: CfgNode) -> bool:
    """Whether to load ImageNet weights: MODEL.BACKBONE.PRETRAINED, unless MODEL.WEIGHTS replaces them anyway.

    Warns if a part of the network would stay frozen at its random initialization.
    """
    backbone, weights = cfg.MODEL.BACKBONE, cfg.MODEL.WEIGHTS
    if backbone.PRETRAINED and weights:
        logger.info("MODEL.WEIGHTS is set: the ImageNet weights of MODEL.BACKBONE.PRETRAINED are not loaded before it.")
        return False
    if not backbone.PRETRAINED and not weights and backbone.FREEZE_AT > 0:
        logger.warning(
            "MODEL.BACKBONE.FREEZE_AT is %d, but neither MODEL.BACKBONE.PRETRAINED nor MODEL.WEIGHTS is set: unless a "
            "checkpoint is loaded later, these stages keep their random weights. Set MODEL.BACKBONE.FREEZE_AT 0 to "
            "train from scratch.",
            backbone.FREEZE_AT,
        )
    return bool(backbone.PRETRAINED)


def check_normalization(cfg: CfgNode, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Warns if pretrained weights were trained with another normalization of images than the config's.

    Args:
        cfg: MODEL.PIXEL_MEAN and MODEL.PIXEL_STD in 0..255, channels in the order of INPUT.FORMAT.
        mean: of the weights, RGB in 0..1.
        std: of the weights, RGB in 0..1.
    """
    order = slice(None) if cfg.INPUT.FORMAT == "RGB" else slice(None, None, -1)
    for key, ours, theirs in (("PIXEL_MEAN", cfg.MODEL.PIXEL_MEAN, mean), ("PIXEL_STD", cfg.MODEL.PIXEL_STD, std)):
        expected = [round(255 * value, 3) for value in theirs][order]
        if any(abs(a - b) > 0.5 for a, b in zip(ours, expected, strict=True)):
            logger.warning(
                "The weights of MODEL.BACKBONE.ARCH %s were trained with another normalization: set MODEL.%s to %s.",
                cfg.MODEL.BACKBONE.ARCH, key, expected,
            )  # fmt: skip


def timm_pretrained_arguments(arch: str) -> dict[str, Any]:
    """Arguments for `timm.create_model` that load the weights of `arch`: the cached file, or a download.

    The network is tried once, briefly, before the download: the hub's client alone would retry for about a minute.

    Raises:
        BackboneError: there are no such weights, or they are not cached and the hub does not answer.
    """
    weights = timm.get_pretrained_cfg(arch, allow_unregistered=False)
    if weights is None or not (weights.hf_hub_id or weights.url or weights.file):
        known = timm.list_pretrained(f"{arch.partition('.')[0]}*")
        raise BackboneError(
            f"MODEL.BACKBONE.PRETRAINED is True, but timm has no weights of MODEL.BACKBONE.ARCH {arch!r}"
            f"{'; it has weights of ' + ', '.join(known[:8]) if known else ''}. Set MODEL.BACKBONE.PRETRAINED False, "
            "or choose another MODEL.BACKBONE.ARCH."
        )
    if weights.hf_hub_id:
        names = [weights.hf_hub_filename] if weights.hf_hub_filename else WEIGHT_FILES
        for name in names:
            cached = try_to_load_from_cache(weights.hf_hub_id, name)
            if isinstance(cached, str) and not weights.custom_load:
                return {"pretrained": True, "pretrained_cfg_overlay": {"file": cached}}
    server = constants.ENDPOINT if weights.hf_hub_id else str(weights.url)
    with explained_download(arch, f"{weights.hf_hub_id or weights.url} to the cache ({constants.HF_HUB_CACHE})"):
        check_reachable(server)
    return {"pretrained": True}


def check_reachable(server: str) -> None:
    """Raises OSError if the server does not answer; an HTTP error is an answer."""
    request = urllib.request.Request(server, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=CONNECT_SECONDS).close()
    except urllib.error.HTTPError:
        return
    except urllib.error.URLError as error:
        if not isinstance(error.reason, ssl.SSLError):  # the downloading client may have other certificates
            raise


@contextlib.contextmanager
def explained_download(arch: str, remedy: str) -> Iterator[None]:
    """Turns a failed download into one error that names the key and the remedy.

    Args:
        arch: MODEL.BACKBONE.ARCH.
        remedy: completes "copy …".

    Raises:
        BackboneError: in place of an OSError, the base of network, hub and file errors.
    """
    try:
        yield
    except OSError as error:
        raise BackboneError(
            f"MODEL.BACKBONE.PRETRAINED is True, but the ImageNet weights of MODEL.BACKBONE.ARCH {arch!r} are not "
            f"cached and cannot be downloaded ({type(error).__name__}: {str(error).splitlines()[0]}). Copy {remedy}, "
            "or set MODEL.WEIGHTS to a checkpoint, or set MODEL.BACKBONE.PRETRAINED False to start from random weights."
        ) from error
