"""Files in a folder or at a URL (https://, s3://, ...) that fsspec opens: their sizes, and parts of them."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from degrid.lookup import shortened
from degrid.types import UserError

T = TypeVar("T")
R = TypeVar("R")
_WAITS = (0.5, 2.0)
"""Seconds before a request that failed is made again: servers refuse now and then."""
_KEPT: dict[int, Any] = {}
"""What fsspec has opened, here or before this process was forked: in a forked process it would close the connections of
the process before, which shares its epoll, and so would never hear of an answer again."""
AT_ONCE = 16
"""Requests to a server that are under way at the same time."""


def is_address(place: object) -> bool:
    """Whether a place is an address, and no path."""
    return "://" in str(place)


def in_folder(folder: str, name: str) -> str:
    """The place of a file in a folder."""
    own, rest = split_chain(folder)
    slash = "" if own.endswith("/") else "/"
    return f"{own}{slash}{name}{rest}" if is_address(folder) else str(Path(folder, name))


def split_chain(place: str) -> tuple[str, str]:
    """A place, and in what it lies: of fsspec's chain "zip://a::https://b/c.zip" the part before and from "::" on."""
    own, chain, rest = place.partition("::")
    return (own, chain + rest) if chain and is_address(own) else (place, "")


def read_part(place: str, start: int = 0, length: int | None = None) -> bytes:
    """Bytes of a file. Each call opens it afresh, so that processes share no handle.

    Args:
        start: the first byte; length: how many; None: all that follow. Fewer come where the file is shorter.
    Raises:
        UserError: missing, or it cannot be read.
    """
    if is_address(place):
        end = None if length is None else start + length
        data = bytes(_asked(place, lambda system, path: system.cat_file(path, start=start, end=end)))
        if length is not None and len(data) > length:
            raise UserError(
                f"cannot read {place}: asked for {length} of its bytes, the server sends {len(data)}; it must support "
                "requests for parts of files (HTTP Range), which small servers such as Python's http.server do not"
            )
        return data
    try:
        with open(place, "rb", buffering=0) as stream:
            stream.seek(start)
            return stream.read(-1 if length is None else length)
    except OSError as error:
        raise _unreadable(place, error) from error


def sizes(places: Sequence[str]) -> list[int | None]:
    """The bytes of each file; None where there is none.

    Raises:
        UserError: a server does not answer.
    """
    return in_threads(_size, places)


def _size(place: str) -> int | None:
    if not is_address(place):
        file = Path(place)
        return file.stat().st_size if file.is_file() else None
    try:
        return int(_asked(place, lambda system, path: system.size(path)))
    except _MissingError:
        return None


def in_threads(read: Callable[[T], R], things: Iterable[T]) -> list[R]:
    """The results of `read`, in order. Several calls run at once, since most of their time is spent waiting."""
    return list(_pool(os.getpid()).map(read, things))


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """The threads of a process, which keep their connections; a forked process has none of those of its parent."""
    return ThreadPoolExecutor(AT_ONCE)


class _MissingError(UserError):
    """Raised if there is no such file."""


def _asked(address: str, ask: Callable[[Any, str], Any]) -> Any:
    """The answer of a server; the request is repeated if the connection fails."""
    import fsspec

    for wait in (*_WAITS, None):
        try:
            # Looked up each time, since a process that was forked must not use the connections of another.
            system, path = fsspec.core.url_to_fs(address)
            _KEPT[id(system)] = system
            return ask(system, path)
        except FileNotFoundError as error:
            raise _MissingError(f"cannot read {address}: there is no such file") from error
        except (ImportError, ValueError) as error:  # no library for this kind of address
            raise UserError(f"cannot open {address}: {error}") from error
        except Exception as error:  # each library has its own
            if wait is None:
                raise _unreadable(address, error) from error
            time.sleep(wait)
    raise AssertionError


def _unreadable(place: str, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return UserError(f"cannot read {place}: {shortened(reason, 200)}")
