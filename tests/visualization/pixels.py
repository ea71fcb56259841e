"""Where a picture has colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def coloured_pixels(path: Path) -> np.ndarray:
    """Rows and columns of the pixels that are not grey."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    return np.argwhere(np.ptp(pixels, axis=-1) > 120)
