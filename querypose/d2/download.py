"""Files from an address: fetched once, into a cache."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from querypose.d2.errors import CheckpointError
from querypose.paths import check_name, path_within

_SECONDS_WITHOUT_DATA = 30


def download(address: str) -> Path:
    """The file of an http or https address: from the cache, `~/.cache/querypose`, or fetched into it.

    Nothing but the last name of the address becomes one of the file, in a folder of its own for each address.

    Raises:
        CheckpointError: it is another kind of address, or the file cannot be fetched; says why.
        FileNameError: the address does not end in a name.
        OSError: the cache cannot be written.
    """
    try:
        parts = urllib.parse.urlsplit(address)
    except ValueError:  # as of an address with half a pair of brackets
        parts = urllib.parse.urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise CheckpointError(f"{address!r} is no address of a file; allowed: https://…, http://…, or a file's path.")
    name = parts.path.rpartition("/")[2]
    check_name(name, f"{address!r}: the name at its end")
    root = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "querypose"
    path = path_within(root / hashlib.sha256(address.encode()).hexdigest()[:16], name, f"{address!r}")
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{os.getpid()}.tmp")  # several processes may fetch it at once
    try:
        with urllib.request.urlopen(address, timeout=_SECONDS_WITHOUT_DATA) as answer, open(unfinished, "wb") as stream:
            shutil.copyfileobj(answer, stream, 2**20)
            expected = answer.headers.get("Content-Length")
            if expected is not None and stream.tell() != int(expected):
                raise http.client.IncompleteRead(b"", int(expected) - stream.tell())
        os.replace(unfinished, path)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise CheckpointError(
            f"{address!r} could not be downloaded ({reason}). Check the address and the network, or download the file "
            "by other means and name its path."
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)
    return path
