"""Data that are recognised but cannot be trained on: what they are, and what to do instead."""

from __future__ import annotations

import contextlib
import re
import zipfile
from pathlib import Path

from PIL import Image

from degrid.lookup import some

_TRANSPARENT = {".png", ".webp", ".tif", ".tiff"}
_TRIED = 5
MASK_OF_CUTOUT = 'Image.open("a.png").getchannel("A").point(lambda v: 255 * (v >= 128)).save("masks/a.png")'


DRAW_RUNS = (
    "runs = np.array(codes.split(), int).reshape(-1, 2); ids = np.zeros(width * height, np.uint8); "
    "for start, length in runs: ids[start - 1 : start - 1 + length] = 1; "
    'Image.fromarray(ids.reshape(width, height).T).save("masks/a.png")'
)


def is_cutout(file: Path) -> bool:
    """Whether parts of an image are transparent and others are not."""
    try:
        with Image.open(file) as image:
            if file.suffix.lower() not in _TRANSPARENT or image.mode not in ("RGBA", "LA"):
                return False
            low, high = image.getchannel("A").getextrema()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False
    return low < high  # type: ignore[operator]


def cutout_sentence(file: Path) -> str:
    """What to do with masks that are transparency; empty where the file has none."""
    if not is_cutout(file):
        return ""
    return f"{file.name} is partly transparent: if that is the mask, make it a file of its own: {MASK_OF_CUTOUT}"


_OF_TOOLS = {
    "SuperAnnotate": (b'"instances"', b'"className"'),
    "Kili": (b'"jsonResponse"',),
    "Encord": (b'"featureHash"',),
    "Hasty": (b'"export_format_version"', b'"label_classes"'),
    "Dataloop": (b'"annotations"', b'"datasetId"'),
    "Darwin": (b'"annotations"', b'"slot_name'),
}
"""What the JSON files of annotation tools hold that are not read, since their programs export COCO's, too."""
_OF_HDF5 = 'one file for each image: Image.fromarray(h5py.File("a.{0}")["images"][0]).save("images/0.png")'
_OF_NIFTI = 'one file for each slice: np.save("images/a_10.npy", nibabel.load("a.{0}").get_fdata()[:, :, 10])'
_OF_MAPS = "rasterio.features.rasterize([(polygon, class_id), ..], image.shape, transform=image.transform)"
_WAYS = {
    "dcm": 'np.save("images/a.npy", pydicom.dcmread("a.dcm").pixel_array)',
    **{suffix: _OF_NIFTI.format(suffix) for suffix in ("nii", "nii.gz")},
    "h5": _OF_HDF5.format("h5"),
    **dict.fromkeys(("geojson", "shp"), _OF_MAPS),
    "hdf5": _OF_HDF5.format("hdf5"),
    "heic": 'pillow_heif.open_heif("a.heic").to_pillow().save("images/a.png")',
}
_JSON_OF = "{{file}} is {0}'s own form of JSON, which is not read: export COCO's JSON with it, or masks"
_NO_IMAGES = "{{file}} and the like are no images to degrid: save them as PNG, TIFF or arrays, such as {0}"
_KNOWN: dict[tuple[str, tuple[bytes, ...]], str] = {
    ("*.json", (b'"stability_score"',)): (
        "Its JSON files are Segment Anything's (SA-1B), whose masks have no classes: give them classes in a tool that "
        "reads COCO's run-length codes, and export COCO's JSON from there"
    ),
    ("*.json", (rb"\A\s*\[", b'"image_id"', b'"category_id"', b'"score"')): (
        "{file} holds COCO's results, which are predictions and name neither images nor categories: give the file of "
        "the annotations"
    ),
    ("*.json", (b'"labelsets"', b'"task_type"')): (
        "{file} is a release of Segments.ai whose labels are no bitmaps: polygons become COCO's JSON with "
        "segments-ai's export_dataset(dataset, export_format='coco-instance')"
    ),
    ("*.csv", (rb"\AMaskPath,ImageID,",)): (
        "{file} is Open Images', which has one mask for each object, of another size than the image: load it with "
        "FiftyOne (load_zoo_dataset) and export fiftyone.types.COCODetectionDataset"
    ),
    ("*.xml", (b"<bndbox>",)): (
        "Its XML files are VOC's boxes, beside which Roboflow and supervision may write polygons: export masks or "
        "COCO's JSON instead"
    ),
    **dict.fromkeys(
        (("metadata.jsonl", (b"mask",)), ("*.parquet", ())),
        "{file} is that of a dataset of Hugging Face: give hf:{path} (pip install degrid[hf])",
    ),
    ("*.json", (b'"fid_list"', b'"aname"')): (
        "{file} is a project of VIA 3, which is not read: export its annotations as COCO's JSON"
    ),
    ("*.csv", (rb"(?i)\A[^\n]*region_shape_attributes",)): ("{file} is VIA's table: export its annotations as JSON"),
    ("*.csv", (rb"(?i)\A[^\n]*(encodedpixels|rle)",)): (
        "{file} holds the masks as run-length codes, as Kaggle's competitions do: draw them as files of ids, such as "
        f"{DRAW_RUNS}"
    ),
    ("PixelLabelData/Label_1.png", ()): (
        "PixelLabelData is that of MATLAB's Image Labeler, whose masks are numbered and not named as the images: call "
        "them as gTruth.DataSource lists the images, in a folder masks"
    ),
    ("*.ndjson", (b'"data_row"',)): (
        "{file} is Labelbox', whose masks lie on its server: fetch them with labelbox, or export COCO's JSON with it"
    ),
    ("*.manifest", (b'"source-ref"',)): (
        "{file} is that of SageMaker Ground Truth, whose lines name an image (source-ref) and its mask (..-ref) in S3: "
        "copy them to images and masks under the same names, and write the classes of internal-color-map into "
        "classes.csv (id,name,r,g,b)"
    ),
    **{("*.json", marks): _JSON_OF.format(tool) for tool, marks in _OF_TOOLS.items()},
    **{(f"*.{suffix}", ()): _NO_IMAGES.format(way) for suffix, way in _WAYS.items()},
}
"""Sentences on data by their marks: the name of a file, and regular expressions that must all match in it.

{file} stands for the file's name, {path} for the folder.
"""
_SEARCHED = 1 << 20
"""How many bytes from a file's beginning are searched."""


def what_is_known(path: Path) -> str:
    """A sentence on data that are recognised, with a full stop in front; empty for others."""
    sentences = (known(path) for known in (_by_content, _archives, _packed, _cutouts))
    return next((f". {sentence}" for sentence in sentences if sentence), "")


def _files(path: Path, pattern: str) -> list[Path]:
    """The first files of a folder, of its folders, or of theirs."""
    found = (sorted(path.glob(f"{below}{pattern}")) for below in ("", "*/", "*/*/"))
    return next(filter(None, found), [])[:_TRIED]


def _by_content(path: Path) -> str:
    for (pattern, marks), sentence in _KNOWN.items():
        file = next((file for file in _files(path, pattern) if _has(file, marks)), None)
        if file:
            return sentence.format(file=file.name, path=path)
    return ""


def _has(file: Path, marks: tuple[bytes, ...]) -> bool:
    if not marks:
        return True
    with file.open("rb") as stream:
        content = stream.read(_SEARCHED)
    return all(re.search(mark, content) for mark in marks)


def _packed(path: Path) -> str:
    archives = [file.name for file in _files(path, "*") if file.suffix.lower() in (".zip", ".rar", ".7z", ".gz")]
    return f"{some(archives, 3)} is packed: unpack it there" if archives else ""


def _cutouts(path: Path) -> str:
    below = [file for suffix in sorted(_TRANSPARENT) for file in _files(path, f"*{suffix}")]
    return next((sentence for file in below if (sentence := cutout_sentence(file))), "")


def _archives(path: Path) -> str:
    for file in _files(path, "*.npz"):
        with contextlib.suppress(OSError, ValueError, zipfile.BadZipFile), zipfile.ZipFile(file) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            return (
                f"{file.name} holds {some(names)}: images and masks are read from files of their own, such as "
                'images/a.png, or images/a.npy and masks/a.npy (numpy.save("masks/a.npy", numpy.load("a.npz")["'
                f'{names[-1]}"]))'
            )
    return ""
