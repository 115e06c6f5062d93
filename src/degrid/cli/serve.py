"""degrid serve."""

from __future__ import annotations

from typing import Annotated

import typer

from degrid.cli import options as opt

Models = Annotated[list[str], typer.Argument(help="Model folders, run folders or exported models.")]
Port = Annotated[int, typer.Option(help="0 takes a free one.")]
Host = Annotated[str, typer.Option(help="The address to listen on; others than this machine's own need a --token.")]
Token = Annotated[
    str | None,
    typer.Option(envvar="DEGRID_TOKEN", help="Answer only requests with the header Authorization: Bearer TOKEN."),
]
Upload = Annotated[str, typer.Option("--max-upload", help="Most bytes of a request, such as 32MiB.")]
Pixels = Annotated[float, typer.Option("--max-megapixels", help="Most pixels of a request's images, in millions.")]
Waiting = Annotated[int, typer.Option(help="Requests that may wait; more get 503 and Retry-After.")]


def serve(
    models: Models,
    port: Port = 8000,
    host: Host = "127.0.0.1",
    token: Token = None,
    device: opt.Device = "auto",
    precision: opt.Precision = "float32",
    max_upload: Upload = "32MiB",
    max_megapixels: Pixels = 25,
    waiting: Waiting = 16,
    scales: opt.Scales = "1",
    flip: opt.Flip = False,
    fusion: opt.Fusion = "mean",
    window: opt.Window = None,
    overlap: opt.Overlap = 0.5,
    memory: opt.Memory = None,
    crf: opt.Crf = False,
    crf_set: opt.CrfSet = None,
) -> None:
    """Open a page to try models on photographs in the browser, and a REST interface: POST /predict,
    GET /models, /health.

    \b
    degrid serve runs/my_photos
    degrid serve runs/plain runs/smoothed --port 8080
    degrid serve runs/my_photos --host 0.0.0.0 --token "$(openssl rand -hex 16)"
    """
    import degrid
    from degrid.engine.memory import keep_freed_memory

    keep_freed_memory()
    options = opt.inference_options(scales, flip, fusion, window, overlap, crf, crf_set, memory)
    limits = degrid.ServeLimits(
        opt.parse_bytes(max_upload, "--max-upload"), round(1e6 * max_megapixels), waiting=waiting
    )

    def tell(place: str) -> None:
        fragment = f"#token={token}" if token else ""
        print(f"serving {', '.join(models)} at {place}{fragment} - press Ctrl+C to end", flush=True)

    degrid.serve(
        models, host, port, token=token, device=device, precision=precision, options=options, limits=limits, tell=tell
    )
