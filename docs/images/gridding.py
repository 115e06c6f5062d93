"""Draw docs/images/gridding.png: what an output of a ResNet-50's last stage sees, before and after smoothing.

python docs/images/gridding.py
"""

from pathlib import Path

import numpy as np
import timm
import torch
from matplotlib.figure import Figure

from degrid import smooth_dilated_convs
from degrid.analysis import dilated_stage_receptive_field, gridding_score

OUT = Path(__file__).with_suffix(".png")


def main() -> None:
    """Measure the last stage of a ResNet-50 at output stride 8 with random weights, and draw."""
    fields = {}
    for title, operator in (("plain dilated convolutions", None), ("the same weights, smoothed (tent)", "tent")):
        torch.manual_seed(0)
        encoder = timm.create_model("resnet50", features_only=True, output_stride=8, zero_init_last=False)
        if operator:
            smooth_dilated_convs(encoder, operator)
        fields[title] = dilated_stage_receptive_field(encoder, side=41)
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    for axes, (title, field) in zip(figure.subplots(1, 2), fields.items(), strict=True):
        axes.imshow(np.sqrt(field / field.max()), cmap="magma", extent=(-20.5, 20.5, 20.5, -20.5))
        axes.set(title=f"{title}\ngridding score {gridding_score(field, 2):.3f}", xlabel="offset, feature pixels")
    figure.savefig(OUT, dpi=110)
    print(OUT)


if __name__ == "__main__":
    main()
