"""What is recognised and cannot be trained on: what it is, and the way on."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Callable
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


def what_is_known(path: Path) -> str:
    """A sentence on data that are recognised, with a full stop in front; empty for others."""
    return next((f". {sentence}" for known in _KNOWN if (sentence := known(path))), "")


def _files(path: Path, pattern: str) -> list[Path]:
    """The first files of a folder, of its folders, or of theirs."""
    found = (sorted(path.glob(f"{below}{pattern}")) for below in ("", "*/", "*/*/"))
    return next(filter(None, found), [])[:_TRIED]


def _segment_anything(path: Path) -> str:
    if not any(b'"stability_score"' in file.read_bytes() for file in _files(path, "*.json")):
        return ""
    return (
        "Its JSON files are Segment Anything's (SA-1B), whose masks have no classes: give them classes in a tool that "
        "reads COCO's run-length codes, and export COCO's JSON from there"
    )


def _results_of_coco(path: Path) -> str:
    for file in _files(path, "*.json"):
        with file.open("rb") as stream:
            start = stream.read(4096)
        if start.lstrip()[:1] == b"[" and all(key in start for key in (b'"image_id"', b'"category_id"', b'"score"')):
            return (
                f"{file.name} holds COCO's results, which are predictions and name neither images nor categories: give "
                "the file of the annotations"
            )
    return ""


def _segments_vectors(path: Path) -> str:
    for file in _files(path, "*.json"):
        content = file.read_bytes()
        if b'"labelsets"' in content and b'"task_type"' in content:
            return (
                f"{file.name} is a release of Segments.ai whose labels are no bitmaps: polygons become COCO's JSON "
                "with segments-ai's export_dataset(dataset, export_format='coco-instance')"
            )
    return ""


def _open_images(path: Path) -> str:
    for file in _files(path, "*.csv"):
        with file.open("rb") as stream:
            if stream.read(17) == b"MaskPath,ImageID,":
                return (
                    f"{file.name} is Open Images', which has one mask for each object, of another size than the image: "
                    "load it with FiftyOne (load_zoo_dataset) and export fiftyone.types.COCODetectionDataset"
                )
    return ""


def _boxes_of_voc(path: Path) -> str:
    if not any(b"<bndbox>" in file.read_bytes() for file in _files(path, "*.xml")):
        return ""
    return (
        "Its XML files are VOC's boxes, beside which Roboflow and supervision may write polygons: export masks or "
        "COCO's JSON instead"
    )


def _hugging_face(path: Path) -> str:
    for file in _files(path, "metadata.jsonl"):
        with file.open("rb") as stream:
            names_masks = b"mask" in stream.read(4096)
        if names_masks:
            return f"{file.name} is that of a dataset of Hugging Face: give hf:{path} (pip install degrid[hf])"
    return ""


def _run_lengths(path: Path) -> str:
    for file in _files(path, "*.csv"):
        with file.open("rb") as stream:
            head = stream.readline(4096).lower()
        if b"region_shape_attributes" in head:
            return f"{file.name} is VIA's table: export its annotations as JSON"
        if b"encodedpixels" in head or b"rle" in head:
            return (
                f"{file.name} holds the masks as run-length codes, as Kaggle's competitions do: draw them as files of "
                f"ids, such as {DRAW_RUNS}"
            )
    return ""


_OF_TOOLS = {
    "SuperAnnotate": (b'"instances"', b'"className"'),
    "Kili": (b'"jsonResponse"',),
    "Encord": (b'"featureHash"',),
    "Hasty": (b'"export_format_version"', b'"label_classes"'),
    "Dataloop": (b'"annotations"', b'"datasetId"'),
}
"""What the JSON files of annotation tools hold that are not read, since their programs export COCO's, too."""


def _other_tools(path: Path) -> str:
    for file in _files(path, "*.json"):
        content = file.read_bytes()
        for tool, marks in _OF_TOOLS.items():
            if all(mark in content for mark in marks):
                return (
                    f"{file.name} is {tool}'s own form of JSON, which is not read: export COCO's JSON with it, or masks"
                )
    return ""


def _ground_truth(path: Path) -> str:
    file = _beginning_with(path, "*.manifest", b'"source-ref"')
    return file and (
        f"{file} is that of SageMaker Ground Truth, whose lines name an image (source-ref) and its mask (..-ref) in "
        "S3: copy them to images and masks under the same names, and write the classes of internal-color-map into "
        "classes.csv (id,name,r,g,b)"
    )


def _beginning_with(path: Path, pattern: str, mark: bytes) -> str:
    """The name of the first file of that pattern that has the mark near its start; empty for none."""
    for file in _files(path, pattern):
        with file.open("rb") as stream:
            if mark in stream.read(65536):
                return file.name
    return ""


_WAYS = {
    "dcm": 'np.save("images/a.npy", pydicom.dcmread("a.dcm").pixel_array)',
    "nii": 'one file for each slice: np.save("images/a_10.npy", nibabel.load("a.nii").get_fdata()[:, :, 10])',
    "nii.gz": 'one file for each slice: np.save("images/a_10.npy", nibabel.load("a.nii.gz").get_fdata()[:, :, 10])',
    "h5": 'one file for each image: Image.fromarray(h5py.File("a.h5")["images"][0]).save("images/0.png")',
    **dict.fromkeys(
        ("geojson", "shp"),
        "rasterio.features.rasterize([(polygon, class_id), ..], image.shape, transform=image.transform)",
    ),
    "hdf5": 'one file for each image: Image.fromarray(h5py.File("a.hdf5")["images"][0]).save("images/0.png")',
}


def _kinds_with_a_way(path: Path) -> str:
    for suffix, way in _WAYS.items():
        if files := _files(path, f"*.{suffix}"):
            return (
                f"{files[0].name} and the like are no images to degrid: save them as PNG, TIFF or arrays, such as {way}"
            )
    return ""


def _labels_of_matlab(path: Path) -> str:
    if not _files(path, "PixelLabelData/Label_1.png"):
        return ""
    return (
        "PixelLabelData is that of MATLAB's Image Labeler, whose masks are numbered and not named as the images: call "
        "them as gTruth.DataSource lists the images, in a folder masks"
    )


def _labelbox(path: Path) -> str:
    file = _beginning_with(path, "*.ndjson", b'"data_row"')
    return file and (
        f"{file} is Labelbox', whose masks lie on its server: fetch them with labelbox, or export COCO's JSON with it"
    )


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


_KNOWN: tuple[Callable[[Path], str], ...] = (
    _segment_anything,
    _results_of_coco,
    _segments_vectors,
    _open_images,
    _boxes_of_voc,
    _hugging_face,
    _run_lengths,
    _labels_of_matlab,
    _labelbox,
    _ground_truth,
    _other_tools,
    _kinds_with_a_way,
    _archives,
    _packed,
    _cutouts,
)
