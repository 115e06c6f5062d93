"""Draw what dilated convolutions see: gridding.png, operators.png and field.png beside this file.

python docs/images/gridding.py
"""

import io
import tempfile
from pathlib import Path

import timm
import torch
from degrid.analysis.field_plots import draw_fields
from PIL import Image
from torch import nn

from degrid import erf, erf_of_operators, smooth_dilated_convs
from degrid.analysis import dilated_stage_receptive_field, gridding_score
from degrid.analysis.page import png

FOLDER = Path(__file__).parent


def encoder() -> nn.Module:
    """A ResNet-50 at output stride 8 with random weights."""
    torch.manual_seed(0)
    made: nn.Module = timm.create_model("resnet50", features_only=True, output_stride=8, zero_init_last=False)
    return made


def save(name: str, data: bytes, width: int) -> None:
    """A PNG of 256 colours: a third of the size, and hardly a difference to see."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    picture.thumbnail((width, width))
    picture.quantize(256).save(FOLDER / name, optimize=True)
    print(FOLDER / name)


def main() -> None:
    """The last stage of a ResNet-50 before and after smoothing; every operator; and one field from four sides."""
    fields = {}
    for title, operator in (("plain dilated convolutions", None), ("the same weights, smoothed (tent)", "tent")):
        network = encoder()
        if operator:
            smooth_dilated_convs(network, operator)
        field = dilated_stage_receptive_field(network, side=41)
        fields[f"{title}\ngridding score {gridding_score(field, 2):.3f}"] = field
    save("gridding.png", png(draw_fields({"": fields}, panel=4.2)), 900)
    with tempfile.TemporaryDirectory() as folder:
        erf_of_operators(out=folder)
        save("operators.png", (Path(folder) / "erf.png").read_bytes(), 1600)
        erf(encoder(), "layer4", start="layer4", size=321, random_weights=0, out=folder)
        save("field.png", (Path(folder) / "erf.png").read_bytes(), 900)


if __name__ == "__main__":
    main()
