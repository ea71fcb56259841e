"""The path manager, of local files; `querypose.d2.download` fetches others."""

from __future__ import annotations

from iopath.common.file_io import PathManager as IopathManager

PathManager = IopathManager()
