"""The path manager: local files and https addresses."""

from __future__ import annotations

from iopath.common.file_io import HTTPURLHandler
from iopath.common.file_io import PathManager as IopathManager

PathManager = IopathManager()
PathManager.register_handler(HTTPURLHandler())
