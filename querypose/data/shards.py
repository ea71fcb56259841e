"""Images in WebDataset shards: tar files of many images each, on a disk or in an object store, read by name.

An index beside them, `shards.json` of `datasets/make_shards.py`, says where in which shard an image begins. So an image
is one read of a range of bytes: a dataset in shards has the order of one in files, needs no disk, and every process
reads no more than its own images. fsspec reads: local paths, s3://, gs://, https:// and what else it knows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from fsspec.core import url_to_fs

from querypose.data.json_files import JsonError, parse_json
from querypose.data.parallel import map_in_threads
from querypose.data.problems import DatasetError
from querypose.errors import RemediableError

INDEX_NAME = "shards.json"
VERSION = 1

_SHARD_NAME = re.compile(r"[\w-][\w.-]*\.tar")  # of the index's folder, and no address of elsewhere
_IMAGE_ADDRESS = re.compile(rf"(?P<index>(?:.*?[/\\])?{re.escape(INDEX_NAME)})[/\\](?P<name>.+)", re.DOTALL)
_COPY_AGAIN = "copy it again, or make the shards again with datasets/make_shards.py"


class ShardError(RemediableError, DatasetError):
    """A shard or an index that is missing or damaged, or whose store is silent: ends a run, unlike a bad image."""

    met_by_all = False


class _Place(NamedTuple):
    shard: str
    begin: int
    size: int


class Shards:
    """An index: the shards with their sizes, and the place of every image.

    Attributes:
        address: of the index.
        sizes: of the shards, in bytes, by their names.
    """

    def __init__(self, address: str, sizes: Mapping[str, int], places: Mapping[str, _Place]) -> None:
        self.address = address
        self.sizes = sizes
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def content(self, image: str) -> bytes:
        """The content of an image file.

        Raises:
            FileNotFoundError: no shard has the image.
            ShardError: its shard cannot be read.
        """
        try:
            shard, begin, size = self._places[image]
        except KeyError:
            raise FileNotFoundError(image) from None
        content = _read(self._address_of(shard), begin, begin + size)
        if len(content) != size:
            what = f"Shard {self._address_of(shard)!r} gives {len(content)} of the {size} bytes of image {image!r}"
            raise ShardError(what, _COPY_AGAIN)
        return content

    def faults(self) -> list[ShardError]:
        """What is wrong with the shards, by a look at the size of each: those that are missing or truncated."""
        return [fault for fault in map_in_threads(self._fault, list(self.sizes), "shards") if fault is not None]

    def _fault(self, shard: str) -> ShardError | None:
        address = self._address_of(shard)
        try:
            filesystem, path = url_to_fs(address)
            size = filesystem.size(path)
        except Exception as error:
            return _explain(address, error)
        if size in (self.sizes[shard], None):  # some servers do not tell
            return None
        what = f"Shard {address!r} has {size} bytes, and not the {self.sizes[shard]} of {self.address!r}"
        return ShardError(what, _COPY_AGAIN)

    def _address_of(self, shard: str) -> str:
        return self.address.removesuffix(INDEX_NAME) + shard


_opened: dict[str, Shards] = {}


def is_index(image_root: str) -> bool:
    """Whether images are in shards: their root is then the address of the index, and not a folder."""
    return os.path.basename(image_root) == INDEX_NAME


def open_shards(address: str) -> Shards:
    """Reads an index, also one that was read before.

    Raises:
        ShardError: it cannot be read, or is none.
    """
    content = _read(address)
    try:
        shards = _parse(address, parse_json(address, content))
    except JsonError as error:
        raise ShardError(f"{address!r} is no index of shards: {error.what}", error.remedy) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"{address!r} is no index of shards, or of another version"
        raise ShardError(what, "make it with datasets/make_shards.py") from error
    _opened[address] = shards
    return shards


def sharded_content(path: str) -> bytes | None:
    """The content of an image file whose path leads through an index; None for any other path.

    Raises:
        FileNotFoundError: no shard has the image.
        ShardError: the index or the shard cannot be read.
    """
    found = _IMAGE_ADDRESS.fullmatch(path)
    if found is None:
        return None
    shards = _opened.get(found["index"]) or open_shards(found["index"])
    return shards.content(found["name"])


def _parse(address: str, document: Any) -> Shards:
    if document["version"] != VERSION:
        raise ValueError(document["version"])
    sizes, places = {}, {}
    for shard, of_shard in document["shards"].items():
        if not _SHARD_NAME.fullmatch(shard):
            raise ValueError(shard)
        sizes[shard] = of_shard["bytes"]
        for image, (begin, size) in of_shard["images"].items():
            if not (type(begin) is type(size) is int and 0 <= begin <= begin + size <= sizes[shard]):
                raise ValueError(image)
            places[image] = _Place(shard, begin, size)
    return Shards(address, sizes, places)


def _read(address: str, begin: int | None = None, end: int | None = None) -> bytes:
    try:
        filesystem, path = url_to_fs(address)
        content: bytes = filesystem.cat_file(path, start=begin, end=end)
    except Exception as error:  # of another kind for each store
        raise _explain(address, error) from error
    return content


def _explain(address: str, error: Exception) -> ShardError:
    kind = "Index of shards" if is_index(address) else "Shard"
    if isinstance(error, FileNotFoundError):
        return ShardError(f"{kind} {address!r} is missing", _COPY_AGAIN)
    if isinstance(error, ImportError):
        return ShardError(f"{kind} {address!r} cannot be read: a package is missing", f"{error}".rstrip("."))
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    remedy = "check address, credentials and network, then go on with --resume"
    return ShardError(f"{kind} {address!r} cannot be read: {reason}", remedy)
