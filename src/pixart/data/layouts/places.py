"""The path that a row gives -> the file: inside the data set, there, and a file; or else why not."""

import os
import posixpath
import stat
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pixart.data.layouts.walk import unusable_name
from pixart.data.pairs import Problem, kind_of_file, printable

WEB = ("http://", "https://", "s3://", "gs://", "ftp://", "data:")


@dataclass(frozen=True)
class Manifest:
    """A manifest that is read: `name` in keys and problems, `folder` from which its paths start.

    `root` is the folder that paths must not leave, and that keys start from.
    """

    name: str
    folder: Path
    root: Path

    @cached_property
    def root_slash(self) -> str:
        root = self.root.as_posix()
        return root if root.endswith("/") else root + "/"

    @cached_property
    def folder_slash(self) -> str:
        folder = self.folder.as_posix()
        return folder if folder.endswith("/") else folder + "/"


def locate(value: object, where: str, manifest: Manifest) -> tuple[str, str] | Problem:
    """Key and path of the picture that a row names, or why there is none.

    Paths must not leave `manifest.root`: neither upwards with "..", nor absolutely. Links inside it are followed.
    """
    if isinstance(value, dict):
        value = value.get("path") or value.get("file_name")  # as Hugging Face writes pictures
    if not isinstance(value, str) or not value.strip():
        return Problem(where, "no-image", "The row names no picture.")
    if value.startswith(WEB):
        reason = f"{_shown(value)} is a web address; fetch the pictures first (img2dataset does)."
        return Problem(where, "url", reason)
    if "\0" in value or unusable_name(value):
        return Problem(where, "path", f"{_shown(value)} cannot be the name of a file.")
    path = _inside(value, manifest)
    about = _stat(path) if path is not None else None
    if about is None and path is not None and "\\" in value:  # written on Windows
        path = _inside(value.replace("\\", "/"), manifest)
        about = _stat(path) if path is not None else None
    if about is None and path is not None and not value.isascii():  # macOS writes names decomposed
        for form in ("NFC", "NFD"):
            other = unicodedata.normalize(form, path[len(manifest.root_slash) :])
            if (found := _stat(manifest.root_slash + other)) is not None:
                path, about = manifest.root_slash + other, found
                break
    if path is None:
        root = printable(str(manifest.root))
        reason = f"{_shown(value)} lies outside the data set, {root}; --image-root allows another folder."
        return Problem(where, "path", reason)
    key = path[len(manifest.root_slash) :]
    if isinstance(about, str):
        return Problem(where, "unreadable", f"{_shown(key)} cannot be reached: {about}.")
    if about is None:
        return Problem(where, "missing", f"{_shown(key)} is not there{_other_case(path)}.")
    if not stat.S_ISREG(about.st_mode):
        return Problem(where, "not-a-file", f"{_shown(key)} is a {kind_of_file(about.st_mode)}, not a file.")
    return key, path


def _shown(value: str) -> str:
    return printable(value[:200])


def _inside(value: str, manifest: Manifest) -> str | None:
    """The whole path, or None if it leaves the root."""
    path = posixpath.normpath(value if value.startswith("/") else manifest.folder_slash + value)
    return path if path.startswith(manifest.root_slash) else None


def _stat(path: str) -> os.stat_result | str | None:
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        return error.strerror if isinstance(error, OSError) else str(error)


def _other_case(path: str) -> str:
    """A remark if the file is there in other letters: the commonest reason for a missing one."""
    folder, name = os.path.split(path)
    stem, ext = os.path.splitext(name)
    for other in (stem + ext.lower(), stem + ext.upper(), name.lower(), name.upper()):
        if other != name and os.path.exists(os.path.join(folder, other)):
            return f" (but {printable(other)} is)"
    return ""
