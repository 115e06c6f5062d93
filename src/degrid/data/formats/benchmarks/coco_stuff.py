"""COCO-Stuff: things and stuff in the images of COCO."""

from __future__ import annotations

from pathlib import Path

from degrid.data.formats.benchmarks.coco import prepared_folders
from degrid.data.formats.benchmarks.common import benchmark, from_one
from degrid.data.formats.layout import DataFormat, Layout
from degrid.data.formats.masks import MaskRule
from degrid.data.formats.pairs import Pair, images_in
from degrid.types import IGNORE_INDEX, LabelSpace, voc_palette

_LISTED = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,street sign,stop sign,"
    "parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,hat,backpack,umbrella,shoe,"
    "eye glasses,handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,"
    "surfboard,tennis racket,bottle,plate,wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,"
    "carrot,hot dog,pizza,donut,cake,chair,couch,potted plant,bed,mirror,dining table,window,desk,toilet,door,tv,"
    "laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,blender,book,clock,vase,scissors,"
    "teddy bear,hair drier,toothbrush,hair brush,banner,blanket,branch,bridge,building-other,bush,cabinet,cage,"
    "cardboard,carpet,ceiling-other,ceiling-tile,cloth,clothes,clouds,counter,cupboard,curtain,desk-stuff,dirt,"
    "door-stuff,fence,floor-marble,floor-other,floor-stone,floor-tile,floor-wood,flower,fog,food-other,fruit,"
    "furniture-other,grass,gravel,ground-other,hill,house,leaves,light,mat,metal,mirror-stuff,moss,mountain,mud,napkin,"
    "net,paper,pavement,pillow,plant-other,plastic,platform,playingfield,railing,railroad,river,road,rock,roof,rug,"
    "salad,sand,sea,shelf,sky-other,skyscraper,snow,solid-other,stairs,stone,straw,structural-other,table,tent,"
    "textile-other,towel,tree,vegetable,wall-brick,wall-concrete,wall-other,wall-panel,wall-stone,wall-tile,wall-wood,"
    "water-other,waterdrops,window-blind,window-other,wood"
)
_ALL = tuple(_LISTED.split(","))
# Planned at first, but left out of COCO when it was released: no pixel has them.
_REMOVED = "street sign,hat,shoe,eye glasses,plate,mirror,window,desk,door,blender,hair brush"
_VALUES = tuple(value for value, name in enumerate(_ALL) if name not in _REMOVED.split(","))
COCO_STUFF = LabelSpace(tuple(_ALL[value] for value in _VALUES), voc_palette(len(_VALUES)))
"""The 171 classes, 80 things and 91 kinds of stuff, in the order of the ids."""
_AS_STORED = MaskRule({IGNORE_INDEX: IGNORE_INDEX, **{value: k for k, value in enumerate(_VALUES)}}, said="COCO-Stuff")
_TRAIN_IDS = "_labelTrainIds.png"


class CocoStuff(DataFormat):
    """stuffthingmaps/train2017 beside train2017 or images/train2017; or annotations, as mmsegmentation makes them.

    The values of stuffthingmaps are 0 to 181, one less than the ids of categories, and 255 is void. mmsegmentation's
    _labelTrainIds.png hold the classes 0 to 170; those of COCO-Stuff 10k (2014) hold 1 to 171, and 0 is void.
    """

    wanted = "stuffthingmaps/train2017 and images/train2017 (COCO-Stuff)"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`."""
        if prepared_folders(path):
            return None
        for folder in ("stuffthingmaps", "annotations/stuffthingmaps", "annotations"):
            for year, of_val in (("2017", "val2017"), ("2014", "test2014")):
                tops = {"train": f"train{year}", "val": of_val}
                found = {split: _pairs(path, path / folder, top) for split, top in tops.items()}
                masks = [pair.mask.name for pairs in found.values() for pair in pairs if pair.mask]
                rule = _rule(masks, year, folder) if masks else None
                if rule:
                    return benchmark(f"{folder}, {masks[0]}", path, found, COCO_STUFF, rule, [])
        return None


def _rule(masks: list[str], year: str, folder: str) -> MaskRule | None:
    """How masks of these names are read; None where nothing shows that they are COCO-Stuff's."""
    if all(name.endswith(_TRAIN_IDS) for name in masks):
        said = "COCO-Stuff"
        return MaskRule.plain(COCO_STUFF, said=said) if year == "2017" else from_one(len(COCO_STUFF), said)
    return _AS_STORED if year == "2017" and folder != "annotations" else None


def _pairs(path: Path, folder: Path, name: str) -> list[Pair]:
    """The images of a split, each with its mask: _labelTrainIds.png where there is one."""
    images = next((place for place in (path / "images" / name, path / name) if place.is_dir()), None)
    if images is None or not (folder / name).is_dir():
        return []
    masks = {file.name for file in (folder / name).iterdir()}
    pairs = []
    for image in images_in(images):
        mask = next((end for end in (_TRAIN_IDS, ".png") if f"{image.stem}{end}" in masks), None)
        pairs.append(Pair(image.stem, image, folder / name / f"{image.stem}{mask}" if mask else None))
    return pairs
