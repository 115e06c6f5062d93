"""Halve the images and labels of a folder such as CamVid: python studies/half_size.py CamVid build/camvid_half

Images by the mean of 2x2 pixels, labels by the nearest; both as PNG. With a further number N, as in
python studies/half_size.py CamVid build/camvid_tenth 10, train.txt keeps every Nth image.
"""

import sys
from pathlib import Path

from PIL import Image


def main(source: Path, target: Path, every: int = 1) -> None:
    """Write the folder `target`, with the lists and classes of `source`."""
    for kind, how in (("images", Image.Resampling.BOX), ("labels", Image.Resampling.NEAREST)):
        (target / kind).mkdir(parents=True, exist_ok=True)
        for file in sorted((source / kind).iterdir()):
            with Image.open(file) as image:
                size = image.width // 2, image.height // 2
                image.resize(size, how).save(target / kind / f"{file.stem}.png")
    for file in (*source.glob("*.txt"), source / "classes.csv"):
        (target / file.name).write_bytes(file.read_bytes())
    train = (source / "train.txt").read_text("utf-8").splitlines()
    (target / "train.txt").write_text("\n".join(train[::every]) + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
