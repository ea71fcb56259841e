"""Training goes on where an image cannot be used, and ends where too many cannot."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from typing import Any

import torch

from querypose.data.image_io import ImageReadError
from querypose.data.mapper import ImageSizeError

_logger = logging.getLogger(__name__)

# Slots of the table of bad images for each image of the dataset: it stays half empty, so a search in it ends soon.
_SLOTS_PER_IMAGE = 2
# That many unusable images one after the other are no accident, but a folder that is not there.
_MAX_IN_A_ROW = 20


class TooManyBadImagesError(ImageReadError):
    """More images of the training data cannot be used than the config allows."""


class SkipBadImages:
    """A mapper that gives None for an image that cannot be read or has another size than its json says.

    Data loaders take another image for None. Bad images are counted over all loader processes of a training process:
    they share a table of the bad images' names, as hashes. An image that is met again is not counted again.
    """

    def __init__(
        self, mapper: Callable[[dict[str, Any]], dict[str, Any]], num_images: int, max_bad_share: float
    ) -> None:
        """Wraps a mapper.

        Args:
            mapper: raises ImageReadError or ImageSizeError for a bad image, before it draws a random number.
            num_images: of the dataset.
            max_bad_share: share of them that may be bad, in [0, 1].
        """
        self._mapper = mapper
        self._num_images = num_images
        self._max_bad_share = max_bad_share
        self._bad_images = torch.zeros(_SLOTS_PER_IMAGE * num_images, dtype=torch.int64).share_memory_()
        self._num_in_a_row = 0

    @property
    def num_bad(self) -> int:
        """Bad images that this process and its loader processes have met."""
        return int(self._bad_images.count_nonzero())

    def __call__(self, record: dict[str, Any]) -> dict[str, Any] | None:
        """The mapper's sample; None for a bad image.

        Raises:
            TooManyBadImagesError: more than the share are bad, or many in a row.
        """
        try:
            sample = self._mapper(record)
        except (ImageReadError, ImageSizeError) as error:
            self._count(record, error)
            return None
        self._num_in_a_row = 0
        return sample

    def _count(self, record: dict[str, Any], error: Exception) -> None:
        is_new = self._note(str(record["file_name"]))
        self._num_in_a_row += 1
        num_bad = self.num_bad
        if num_bad > self._max_bad_share * self._num_images or self._num_in_a_row >= _MAX_IN_A_ROW:
            raise TooManyBadImagesError(
                f"{num_bad} of {self._num_images} training images cannot be used so far, {self._num_in_a_row} in a "
                f"row; DATALOADER.MAX_BAD_IMAGES allows a share of {self._max_bad_share:g}. tools/check_dataset.py "
                f"--images pixels lists them all; repair them, or take them out of the json. The last one: {error}"
            ) from error
        if is_new:
            _logger.warning(
                "%s Skipped: another image takes its place. (%d of %d training images are bad so far.)",
                error, num_bad, self._num_images,
            )  # fmt: skip

    def _note(self, file_name: str) -> bool:
        """Writes a name into the table; True if it was not there. Two names that share a slot use the next free one."""
        digest = hashlib.blake2b(file_name.encode(errors="surrogateescape"), digest_size=8).digest()
        name_hash = int.from_bytes(digest, "little", signed=True) or 1
        slot = name_hash % len(self._bad_images)
        while self._bad_images[slot] not in (0, name_hash):
            slot = (slot + 1) % len(self._bad_images)
        is_new = self._bad_images[slot] == 0
        self._bad_images[slot] = name_hash
        return bool(is_new)
