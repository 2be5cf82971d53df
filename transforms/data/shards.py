"""Files of one kind in which a data set lies cut up: which there are, wherever they are, and by what one is known again."""

from __future__ import annotations

import collections
import glob
import hashlib
import os

from transforms.data.folders import NO_FILES, data_folders, ending_of
from transforms.errors import UserError
from transforms.store.files import exists, is_url, matching, open_file, walk

READ_WHOLE = 64 << 20
"""Files of up to as many bytes are recognised by all that they hold, larger ones by their ends."""


def files_with(endings: str | tuple[str, ...], path: str, expected: str) -> tuple[list[str], dict[str, int]]:
    """The files that a path stands for, sorted, and what else lies in the folder → how often.

    Args:
        endings: of their names, in small letters. A file that is named by its path may have any.
        path: a file, a folder (the files in it and below), or a glob; of this machine or of a store.
        expected: what the error says for a path that is neither file nor folder.
    """
    if not path:
        return [], {}
    if is_url(path):
        return _behind_url(endings, path)
    # What exists is no pattern, whatever signs are in its name.
    if os.path.exists(path):
        return _in(endings, path, expected)
    files: list[str] = []
    left_out: collections.Counter[str] = collections.Counter()
    for one in sorted(glob.glob(path, recursive=True)):
        readable = os.path.isfile(one) or os.path.isdir(one)
        found, others = _in(endings, one, expected) if readable else ([], {NO_FILES: 1})
        files += found
        left_out.update(others)
    # A pattern with ** finds a folder and what is in it.
    return sorted(set(files)), dict(left_out)


def _behind_url(endings: str | tuple[str, ...], path: str) -> tuple[list[str], dict[str, int]]:
    if any(sign in path for sign in "*?["):
        return matching(path), {}
    # A folder of an object store does not exist by itself, so what is in it is looked for first.
    root = path.rstrip("/")
    inside = [file.path for file in walk(root) if all(map(_is_shard, file.path.removeprefix(root).strip("/").split("/")))]
    files = [one for one in inside if one.lower().endswith(endings)]
    if not files and exists(path):
        return [path], {}
    return files, dict(collections.Counter(ending_of(one) for one in inside if not one.lower().endswith(endings)))


def _in(endings: str | tuple[str, ...], path: str, expected: str) -> tuple[list[str], dict[str, int]]:
    """The files that a local path stands for, and what else there is → how often."""
    if os.path.isfile(path):
        return [path], {}
    if not os.path.isdir(path):
        raise UserError(f"{path!r} is a pipe, a device or a socket, or leads nowhere; {expected}")
    files = []
    left_out: collections.Counter[str] = collections.Counter()
    for folder in data_folders(path):
        left_out.update(folder.left_out)
        if all(map(_is_shard, folder.inside.split(os.sep))):
            for name in filter(_is_shard, folder.names):
                if name.lower().endswith(endings):
                    files.append(os.path.join(path, folder.inside, name))
                else:
                    left_out[ending_of(name)] += 1
    return sorted(files), dict(left_out)


def _is_shard(name: str) -> bool:
    # Spark's and Delta's own files begin with _, and are left alone by whoever reads such folders.
    return not name.startswith((".", "_"))


def recognised_by(file: str) -> list[str | int]:
    """Name, size and hash of a file of Parquet, or of one of another kind that is small.

    A Parquet footer names every column chunk's place, size and statistics, and is read in no time; a change that leaves
    all of these as they were is missed in large files alone.
    """
    with open_file(file) as source:
        source.seek(0, os.SEEK_END)
        size = source.tell()
        source.seek(max(0, size - 8))
        length = int.from_bytes(source.read(4), "little")
        source.seek(max(0, size - 8 - length) if size > READ_WHOLE else 0)
        return [os.path.basename(file), size, hashlib.sha256(source.read()).hexdigest()]
