"""Halve the images and labels of a folder such as CamVid: python studies/half_size.py CamVid build/camvid_half

Images by the mean of 2x2 pixels, labels by the nearest; both as PNG.
"""

import sys
from pathlib import Path

from PIL import Image


def main(source: Path, target: Path) -> None:
    """Write the folder `target`, with the lists and classes of `source`."""
    for kind, how in (("images", Image.Resampling.BOX), ("labels", Image.Resampling.NEAREST)):
        (target / kind).mkdir(parents=True, exist_ok=True)
        for file in sorted((source / kind).iterdir()):
            with Image.open(file) as image:
                size = image.width // 2, image.height // 2
                image.resize(size, how).save(target / kind / f"{file.stem}.png")
    for file in (*source.glob("*.txt"), source / "classes.csv"):
        (target / file.name).write_bytes(file.read_bytes())


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
