"""Images that cannot be used are skipped and counted, and end a training where they are too many."""

from __future__ import annotations

import hashlib
import logging

import torch

from querypose.data.image_io import ImageReadError

_logger = logging.getLogger(__name__)

# Slots of the table of bad images for each image of the dataset: it stays half empty, so a search in it ends soon.
_SLOTS_PER_IMAGE = 2
# So many unusable images in a row mean that a folder is missing, not that some files are damaged.
_MAX_IN_A_ROW = 20


class TooManyBadImagesError(ImageReadError):
    """More images of the training data cannot be used than the config allows."""


class BadImages:
    """Counts them over all loader processes of a training process, each image once.

    The processes share a table of the images' names, as hashes.
    """

    def __init__(self, num_images: int, max_share: float) -> None:
        """Begins without any.

        Args:
            num_images: of the dataset.
            max_share: share of them that may be bad, in [0, 1].
        """
        self._num_images = num_images
        self._max_share = max_share
        self._table = torch.zeros(_SLOTS_PER_IMAGE * num_images, dtype=torch.int64).share_memory_()
        self._num_in_a_row = 0

    @property
    def count(self) -> int:
        """Bad images that this process and its loader processes have met."""
        return int(self._table.count_nonzero())

    def add(self, file_name: str, error: Exception) -> None:
        """Counts an image, and warns if it is met for the first time.

        Args:
            file_name: of the image.
            error: why it cannot be used.

        Raises:
            TooManyBadImagesError: more than the share are bad, or many in a row.
        """
        is_new = self._note(file_name)
        self._num_in_a_row += 1
        count = self.count
        if count > self._max_share * self._num_images or self._num_in_a_row >= _MAX_IN_A_ROW:
            raise TooManyBadImagesError(
                f"{count} of {self._num_images} training images cannot be used so far, the last {self._num_in_a_row} "
                f"in a row; DATALOADER.MAX_BAD_IMAGES allows a share of {self._max_share:g}. tools/check_dataset.py "
                f"--images pixels lists all of them; repair them, or remove them from the json. The last one: {error}"
            ) from error
        if is_new:
            _logger.warning(
                "%s The image is skipped, and another one takes its place. (So far %d of %d training images are bad.)",
                error, count, self._num_images,
            )  # fmt: skip

    def end_row(self) -> None:
        """Ends the row of bad images: one could be used."""
        self._num_in_a_row = 0

    def _note(self, file_name: str) -> bool:
        """Writes a name into the table; True if it was not there. Two names that share a slot use the next free one."""
        digest = hashlib.blake2b(file_name.encode(errors="surrogateescape"), digest_size=8).digest()
        name_hash = int.from_bytes(digest, "little", signed=True) or 1
        slot = name_hash % len(self._table)
        while self._table[slot] not in (0, name_hash):
            slot = (slot + 1) % len(self._table)
        is_new = self._table[slot] == 0
        self._table[slot] = name_hash
        return bool(is_new)
