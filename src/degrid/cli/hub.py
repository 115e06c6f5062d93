"""degrid hub pack, push and pull."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from degrid.cli.options import group

if TYPE_CHECKING:
    from degrid.verbs.model_card import CardText

app = group(help="Give models away with a card, and take those of others, on the Hugging Face hub.")

_Model = Annotated[str, typer.Argument(help="A model folder or run folder.")]
_Half = Annotated[bool, typer.Option("--half", help="Weights in float16, which takes half the space.")]
_Data = Annotated[
    str, typer.Option(help="Score the model on this dataset; by default the card gives its last validation.")
]
_Split = Annotated[str, typer.Option(help="Split to score.")]
_Purpose = Annotated[str, typer.Option(help='What it segments, such as "street scenes by day".')]
_License = Annotated[str, typer.Option(help="Of the weights, as the hub spells it, such as apache-2.0.")]
_About = Annotated[
    Path | None, typer.Option(help="Markdown for the card: the data and its licence, limits, ...; headings from ##.")
]


@app.command()
def pack(
    model: _Model,
    out: Annotated[Path, typer.Option("-o", "--out", help="A new folder.")],
    half: _Half = False,
    data: _Data = "",
    split: _Split = "test",
    purpose: _Purpose = "",
    license: _License = "",
    about: _About = None,
) -> None:
    """Write a folder to give away: model, README.md (the card) and card.json, with scores, training and hash.

    \b
    degrid hub pack runs/camvid -o street-model --half --data CamVid --split test
    """
    from degrid.cli.progress import progress_bar
    from degrid.verbs import hub

    text = _text(purpose, license, about)
    with progress_bar() as bar:
        folder = hub.pack(model, out, half=half, data=data, split=split, text=text, progress=bar)
    print(f"wrote {folder}: {', '.join(sorted(file.name for file in folder.iterdir()))}")


@app.command()
def push(
    model: Annotated[str, typer.Argument(help="A folder of degrid hub pack, or a model folder or run folder.")],
    repo: Annotated[str, typer.Argument(help="OWNER/NAME; made where it is missing.")],
    private: Annotated[bool, typer.Option("--private", help="Make a private repository.")] = False,
    half: _Half = False,
    data: _Data = "",
    split: _Split = "test",
    purpose: _Purpose = "",
    license: _License = "",
    about: _About = None,
) -> None:
    """Put a model with its card on the Hugging Face hub; log in first: hf auth login, or HF_TOKEN.

    \b
    degrid hub push runs/my_photos me/my-photos --license apache-2.0
    degrid hub push street-model me/street-model --private
    """
    import degrid
    from degrid.cli.progress import progress_bar

    text = _text(purpose, license, about)
    with progress_bar() as bar:
        page = degrid.push_to_hub(
            model, repo, private=private, half=half, data=data, split=split, text=text, progress=bar
        )
    print(f"{page}; for others: degrid predict hf:{repo} photos/")


@app.command()
def pull(
    repo: Annotated[str, typer.Argument(help="OWNER/NAME, or OWNER/NAME@REVISION.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="A new folder; by default NAME.")] = None,
) -> None:
    """Copy a model from the Hugging Face hub into a folder. Every command also takes hf:OWNER/NAME itself.

    \b
    degrid hub pull me/my-photos -o models/my_photos
    """
    from degrid.verbs import hub

    print(f"wrote {hub.pull(repo, out)}")


def _text(purpose: str, license: str, about: Path | None) -> CardText | None:
    """The user's own text about the model; None if there is none."""
    from degrid.files import read_text
    from degrid.verbs.model_card import CardText

    text = CardText(purpose, license, read_text(about) if about else "")
    return None if text == CardText() else text
