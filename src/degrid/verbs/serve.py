"""degrid.serve: a page and a REST interface for trying models."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from torch import nn

from degrid.analysis.curves import distinct
from degrid.arguments import checked
from degrid.engine.inference.options import InferenceOptions
from degrid.serving.served import Served, ServeLimits, serve_as
from degrid.threads import signals_caught
from degrid.types import Tell, UserError
from degrid.verbs.open_network import AnyModel, name_of, open_predictor

if TYPE_CHECKING:
    from fastapi import FastAPI

_LEAST_TOKEN = 8
_GRACE = 30
"""Seconds in which requests may finish after the server was told to end."""


@checked
def serve(
    models: AnyModel | Iterable[AnyModel],
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    token: str | None = None,
    device: str = "auto",
    precision: str = "float32",
    options: InferenceOptions | None = None,
    limits: ServeLimits | None = None,
    tell: Tell | None = None,
) -> None:
    """Serve models until the program is interrupted (Ctrl+C) or terminated (SIGTERM).

    Requests that have begun by then are answered. The answers are those of `degrid.predict`. Nothing that is sent is
    kept, and no other host is contacted.

    Args:
        models: model folders, run folders, exported files or networks; one, or several to compare.
        host: the address to listen on. Any other than this machine's own needs a token.
        port: 0 takes a free one.
        token: that requests must send as "Authorization: Bearer TOKEN"; None: no token, and only programs on this
            machine are answered.
        device, precision: see `degrid.Predictor`. In float32 an answer does not depend on earlier requests.
        options: scales, flips, windows and CRF; by default the network runs once on the whole image.
        limits: of what a request may ask.
        tell: called with a sentence when the server is ready, which says where.
    Raises:
        UserError: no model, an address that is taken or needs a token, or fastapi is not installed.
    """
    # A network may be iterable, too.
    chosen = [models] if isinstance(models, str | os.PathLike | nn.Module) else list(models)
    if not chosen:
        raise UserError("nothing to serve: expected at least one model")
    with ExitStack() as stack:
        listening = stack.enter_context(_listen(host, port, token))
        served = stack.enter_context(_opened(chosen, device, precision, options or InferenceOptions()))
        try:
            from degrid.serving.app import make_app
        except ModuleNotFoundError as error:
            raise UserError(f"{error.name} is not installed; pip install degrid[serve]") from error
        _serve(make_app(served, limits, token), listening, tell)


@contextmanager
def _opened(models: list[AnyModel], device: str, precision: str, options: InferenceOptions) -> Iterator[list[Served]]:
    names = distinct(os.path.basename(os.path.normpath(name_of(model))) for model in models)
    with ExitStack() as stack:
        predictors = [stack.enter_context(open_predictor(model, device, precision, options)) for model in models]
        yield [serve_as(name, predictor) for name, predictor in zip(names, predictors, strict=True)]


def _listen(host: str, port: int, token: str | None) -> socket.socket:
    """A socket that listens.

    Raises:
        UserError: the address is taken, is none of this machine's, or needs a token.
    """
    from degrid.serving.guard import is_local

    if token is not None and len(token) < _LEAST_TOKEN:
        raise UserError(f"a token needs at least {_LEAST_TOKEN} characters, got {len(token)}")
    if token is None and not is_local(host):
        raise UserError(f"others could reach the server at {host}: give a --token (token=...), or serve 127.0.0.1 only")
    if not 0 <= port < 1 << 16:
        raise UserError(f"expected a port from 0 to 65535, got {port}")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UserError(f"cannot listen on {host}, port {port}: {error.strerror}; choose another --port") from error


def _serve(app: FastAPI, listening: socket.socket, tell: Tell | None) -> None:
    """Answer until a signal comes; then answer what has begun, and return."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="error",
        access_log=False,
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=_GRACE,
    )
    server = uvicorn.Server(config)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of forms, which are answered by 400
    if tell:
        host, port = listening.getsockname()[:2]
        tell(f"http://{f'[{host}]' if ':' in host else host}:{port}/")
    # In a thread: a notebook's own runs a loop of events already, and uvicorn would end the program by the signal that
    # ended the server; a second Ctrl+C ends it at once.
    with signals_caught(server.handle_exit), ThreadPoolExecutor(1) as threads:
        threads.submit(asyncio.run, server.serve(sockets=[listening])).result()
