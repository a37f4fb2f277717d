"""SHA256SUMS: the hash of every file of a checkpoint, written before the checkpoint gets its name.

    # nuwaxl_jax checkpoint, sha256 of the lines below: 5f0c...
    9b1e...  ema/_METADATA
    77ab...  ema/d/163cbdc55bee4ef19b33abdb37acb594

`sha256sum -c SHA256SUMS` inside the folder checks it without this program. The first line covers the others, so damage
to the list itself shows as such. Files that the list does not name are nobody's business.
"""

from concurrent import futures
import hashlib
import os

from nuwaxl_jax import files

FILE = "SHA256SUMS"
_HEAD = "# nuwaxl_jax checkpoint, sha256 of the lines below: "


class Unreadable(Exception):
    """A folder that this user may not read: neither good nor damaged."""


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: str) -> None:
    """To the disk itself, so that a power cut after the rename finds the bytes there."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _names(folder: str) -> tuple[list[str], list[str]]:
    """(files, folders) below `folder`, as paths from it; the list itself apart."""
    names, folders = [], []
    for where, inner, found in os.walk(folder):
        folders += [os.path.join(where, name) for name in inner]
        names += [os.path.relpath(os.path.join(where, name), folder) for name in found]
    return sorted(name for name in names if name not in (FILE, f"{FILE}.part")), folders


def write(folder: str) -> None:
    """Hashes and syncs every file of `folder`, and writes the list by atomic rename.

    Raises:
      OSError: a file cannot be read or the list cannot be written.
    """
    names, folders = _names(folder)

    def settle(name: str) -> str:
        path = os.path.join(folder, name)
        _sync(path)
        return _sha256(path)

    with futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        lines = "".join(f"{digest}  {name}\n" for name, digest in zip(names, pool.map(settle, names)))
    head = f"{_HEAD}{hashlib.sha256(lines.encode()).hexdigest()}\n"
    files.write_bytes(os.path.join(folder, FILE), (head + lines).encode())
    for path in (*folders, folder):
        _sync(path)


def exists(folder: str) -> bool:
    """Whether `folder` holds the list."""
    return os.path.isfile(os.path.join(folder, FILE))


def read(folder: str) -> dict[str, str]:
    """{file: sha256}.

    Raises:
      ValueError: the list is not what was written.
    """
    with open(os.path.join(folder, FILE), "rb") as file:
        head, _, lines = file.read().partition(b"\n")
    if head.decode(errors="replace") != _HEAD + hashlib.sha256(lines).hexdigest():
        raise ValueError(f"{FILE}: is not what was written")
    pairs = (line.split("  ", 1) for line in lines.decode().splitlines())
    return {name: digest for digest, name in pairs}


def problem(folder: str, only: tuple[str, ...] = ("",), share: tuple[int, int] = (0, 1)) -> str:
    """What is wrong with the files of a folder that has a list; '' where nothing is.

    Args:
      folder: of a checkpoint.
      only: beginnings of the files' names; others are not looked at.
      share: (i, n): look at every n-th file from the i-th, so that n processes read each file once.

    Raises:
      Unreadable: a file is there, and this user may not read it.
    """
    try:
        listed = read(folder)
    except PermissionError as error:
        raise Unreadable(str(error)) from error
    except (OSError, ValueError) as error:
        return f"{FILE}: is missing" if isinstance(error, FileNotFoundError) else str(error)
    names = [name for name in sorted(listed) if name.startswith(only)][share[0] :: share[1]]

    def wrong(name: str) -> str:
        try:
            return "" if _sha256(os.path.join(folder, name)) == listed[name] else f"{name}: its SHA-256 differs"
        except PermissionError as error:
            raise Unreadable(str(error)) from error
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return f"{name}: is missing"
        except OSError as error:
            return f"{name}: {error.strerror or error}"

    with futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = [line for line in pool.map(wrong, names) if line]
    return f"{found[0]} (and {len(found) - 1} more)" if len(found) > 1 else "".join(found)
