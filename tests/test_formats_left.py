"""Inputs that are rarely seen: links, arrays as pictures, fractions, pictures inside JSON, stacks, few images."""

import base64
import io
import json
import os

import numpy as np
import pytest
from mask_writers import tiff
from PIL import Image
from test_tools_polygons import CAR, HEIGHT, SIGN, TRUTH, WIDTH, check, put_image, put_json, put_text

from degrid.data import check_data, notes_of, open_dataset
from degrid.data.dataset import open_layout
from degrid.data.inspection.preview import Seen
from degrid.image import read_image
from degrid.types import IGNORE_INDEX, UserError
from degrid.verbs.find_images import find_images


def folders(root, count=4, suffix=".png"):
    """images/ and masks/ of `TRUTH`."""
    (root / "masks").mkdir(parents=True)
    for k in range(count):
        put_image(root / "images" / f"{k}.png")
        Image.fromarray(TRUTH).save(root / "masks" / f"{k}.png")


def test_folders_behind_links(tmp_path):
    """A link in the folder is followed; one that leads in circles is not."""
    folders(tmp_path / "there")
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "masks").mkdir()
    for name in ("images", "masks"):
        os.symlink(tmp_path / "there" / name, tmp_path / "data" / name / "batch")
        os.symlink(tmp_path / "data", tmp_path / "there" / name / "around")
        os.symlink(tmp_path / "data" / name, tmp_path / "data" / name / "again")
    layout = open_layout(tmp_path / "data")
    names = sorted(source.name for sources in layout.splits.values() for source in sources)
    assert [name for name in names if name.count("/") == 1] == [f"batch/{k}" for k in range(4)]
    assert len(names) < 50


def test_images_to_predict_behind_links(tmp_path):
    """Folders and patterns alike follow a link, but not round in circles."""
    folder, there = tmp_path / "photos", tmp_path / "there"
    folder.mkdir()
    put_image(there / "day" / "a.png")
    os.symlink(there, folder / "trip")
    os.symlink(folder, there / "day" / "around")
    for pattern in (str(folder), f"{folder}/**/*.png"):
        assert list(find_images([pattern]).images) == ["trip/day/a"], pattern


def test_supervisely_behind_links(tmp_path):
    there = tmp_path / "there" / "ds0"
    put_image(there / "img" / "a.png")
    (there / "ann").mkdir()
    size = {"height": TRUTH.shape[0], "width": TRUTH.shape[1]}
    (there / "ann" / "a.png.json").write_text(json.dumps({"size": size, "objects": []}))
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "meta.json").write_text('{"classes": [{"title": "crack", "color": "#00FF00"}]}')
    os.symlink(tmp_path / "there", tmp_path / "project" / "data")
    os.symlink(tmp_path / "project", there / "around")
    layout = open_layout(tmp_path / "project")
    assert layout.kind == "Supervisely"
    assert {source.name for sources in layout.splits.values() for source in sources} == {"data/ds0/a.png"}


@pytest.mark.parametrize("count", range(1, 8))
def test_few_images_are_mostly_trained_on(tmp_path, count):
    """Whatever their names: of three, one is kept for validation."""
    for start in ("a", "b", "frame_", "x9", "q"):
        root = tmp_path / start
        (root / "masks").mkdir(parents=True)
        for k in range(count):
            put_image(root / "images" / f"{start}{k}.png")
            Image.fromarray(TRUTH).save(root / "masks" / f"{start}{k}.png")
        layout = open_layout(root)
        splits = {split: len(sources) for split, sources in layout.splits.items()}
        assert splits["train"] + splits["val"] == max(2, count)
        assert 1 <= splits["val"] <= max(1, count // 3)
        said = f"{splits['val']} of {count} images, chosen" if count > 1 else "the only image is trained on and"
        assert said in layout.notes[0]


def test_arrays_as_pictures_in_folders(tmp_path):
    folders(tmp_path)
    for k in range(4):
        (tmp_path / "images" / f"{k}.png").unlink()
        np.save(tmp_path / "images" / f"{k}.npy", np.full((HEIGHT, WIDTH, 3), 40 * k, np.uint8))
    sample = check(tmp_path, names=open_layout(tmp_path).labels.names)[0]
    assert (sample.image == 40 * int(sample.name)).all()


def test_fractions_with_a_threshold(tmp_path):
    """Maps of probabilities from 0 to 1, as TIFF and .npy; what holds no data stays void."""
    folders(tmp_path)
    truth = np.where(TRUTH == 2, IGNORE_INDEX, TRUTH > 0).astype(np.uint8)
    values = np.where(TRUTH == 2, np.nan, np.where(TRUTH, 0.5, 0.4921875)).astype(np.float32)
    for k in range(4):
        (tmp_path / "masks" / f"{k}.png").unlink()
    for k in (0, 1):
        (tmp_path / "masks" / f"{k}.tif").write_bytes(tiff(values))
        np.save(tmp_path / "masks" / f"{k + 2}.npy", values)
    with pytest.raises(UserError, match=r"holds fractions, .* or threshold: 0\.5 in dataset\.yaml"):
        open_dataset(tmp_path)[0]
    put_text(tmp_path / "dataset.yaml", "threshold: 0.5\n")
    for split in ("train", "val"):
        check(tmp_path, split, truth, ("background", "foreground"))
    assert check_data(tmp_path).ok


def test_labelme_without_image_files(tmp_path):
    """The image is in the JSON file, which labelme keeps by itself."""
    pictures = {}
    for name in "abcd":
        pictures[name] = np.random.default_rng(ord(name)).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pictures[name]).save(stream, "PNG")
        shapes = [
            {"label": label, "points": np.reshape(points, (-1, 2)).tolist(), "shape_type": "polygon"}
            for label, points in (("car", CAR), ("sign", SIGN))
        ]
        content = {"shapes": shapes, "imagePath": f"{name}.jpg", "imageHeight": HEIGHT, "imageWidth": WIDTH}
        put_json(tmp_path / f"{name}.json", {**content, "imageData": base64.b64encode(stream.getvalue()).decode()})
    report = check_data(tmp_path)
    assert report.ok, report.problems
    for split in ("train", "val"):
        for sample in check(tmp_path, split, kind="labelme"):
            assert (sample.image.permute(1, 2, 0).numpy() == pictures[sample.name]).all()
    content = json.loads((tmp_path / "a.json").read_text())
    put_json(tmp_path / "a.json", {**content, "imageData": "AAAA"})
    assert any("imageData is not a readable image" in problem for problem in check_data(tmp_path).problems)


def test_pictures_of_several_pages_are_refused(tmp_path):
    page = np.zeros((4, 4), np.uint8)
    (tmp_path / "a.tif").write_bytes(tiff(page, page))
    with pytest.raises(UserError, match=r"a\.tif holds 2 pages, and a picture is one"):
        read_image(tmp_path / "a.tif")
    frames = [Image.fromarray(page + value) for value in (0, 90)]
    for suffix in (".gif", ".webp", ".png"):
        frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:])
        with pytest.raises(UserError, match=rf"a\{suffix} holds 2 pages"):
            read_image(tmp_path / f"a{suffix}")


def test_a_stack_of_imagej_in_one_directory_is_refused(tmp_path):
    """ImageJ writes the planes of large stacks one after the other, with the tags of the first."""
    text = "ImageJ=1.54f\nimages=3\nslices=3\nloop=false\n"
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.tif", description=text)
    with pytest.raises(UserError, match=r"a\.tif holds 3 pages"):
        read_image(tmp_path / "a.tif")


def test_a_preview_says_no_data(tmp_path):
    folders(tmp_path)
    for k in range(4):
        values = np.where(TRUTH == 2, np.nan, TRUTH).astype(np.float32)
        (tmp_path / "masks" / f"{k}.png").unlink()
        (tmp_path / "masks" / f"{k}.tif").write_bytes(tiff(values))
    dataset = open_dataset(tmp_path)
    seen = Seen(dataset)
    seen.add(0, dataset[0].label.numpy())
    assert seen.values_of(IGNORE_INDEX) == "no data, 255"


def test_mvtec_ad(tmp_path):
    """The defects are the classes, what has none is background, and the good images of train are left out."""
    for place in ("train/good/0", "test/good/0", "test/good/1", "test/crack/0", "test/hole/0", "test/hole/1"):
        put_image(tmp_path / f"{place}.png")
    truth = {"good": np.zeros_like(TRUTH)}
    for value, name in ((1, "crack"), (2, "hole")):
        truth[name] = np.where(value == TRUTH, value, 0)
        for k in range(value):
            (tmp_path / "ground_truth" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray((truth[name] > 0).astype(np.uint8) * 255).save(
                tmp_path / "ground_truth" / name / f"{k}_mask.png"
            )
    datasets = [open_dataset(tmp_path, split) for split in ("train", "val")]
    assert open_layout(tmp_path).kind == "MVTec AD"
    assert datasets[0].labels.names == ("background", "crack", "hole")
    assert "1 image of train, all without defects, are left out" in notes_of(datasets[0])
    found = {sample.name: sample.label.tolist() for dataset in datasets for sample in dataset}
    assert len(found) == 5
    assert all(label == truth[name.split("/")[1]].tolist() for name, label in found.items())


def segment_anything(folder):
    put_json(folder / "sa_1.json", {"image": {}, "annotations": [{"stability_score": 0.9}]})


def open_images(folder):
    put_text(folder / "train-annotations-object-segmentation.csv", "MaskPath,ImageID,LabelName,BoxID\n")


def cutouts(folder):
    pixels = np.full((4, 4, 4), 90, np.uint8)
    pixels[1:3, :, 3] = 0
    Image.fromarray(pixels).save(folder / "b.png")


def boxes_of_voc(folder):
    put_text(folder / "Annotations" / "a.xml", "<annotation><object><bndbox></bndbox></object></annotation>")


def of_tool(name, content):
    return lambda folder: put_json(folder / name, content)


def ground_truth(folder):
    put_text(folder / "output.manifest", '{"source-ref": "s3://a/b.jpg", "my-ref": "s3://a/b.png"}\n')


def via_table(folder):
    put_text(folder / "via_region_data.csv", "filename,file_size,region_shape_attributes,region_attributes\n")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            of_tool("a.json", {"attribute": {"1": {"aname": "x"}}, "view": {"1": {"fid_list": ["1"]}}}),
            "a.json is a .*VIA 3",
        ),
        (lambda folder: put_text(folder / "data/train-0.parquet", ""), r"train-0.parquet is .*: give hf:\S+ \(pip"),
        (via_table, "via_region_data.csv is VIA's table: export its annotations as JSON"),
        (of_tool("a.geojson", {}), r"a.geojson and the like are no images .* such as rasterio.features.rasterize"),
        (ground_truth, "output.manifest is that of SageMaker Ground Truth, whose lines name an image"),
        (of_tool("b.png.json", {"instances": [{"className": "a"}]}), "b.png.json is SuperAnnotate's own form of JSON"),
        (of_tool("a.json", [{"labels": [{"jsonResponse": {}}]}]), "a.json is Kili's own form of JSON, which is not"),
        (of_tool("a.json", [{"data_units": {"featureHash": "x"}}]), "a.json is Encord's own form of JSON"),
        (of_tool("a.json", {"annotations": [{"slot_names": ["0"]}]}), "a.json is Darwin's own form of JSON"),
        (
            of_tool("a.json", {"export_format_version": "1.1", "label_classes": []}),
            "a.json is Hasty's own form of JSON",
        ),
        (lambda folder: put_text(folder / "b.heic", ""), r"b.heic and the like .* such as pillow_heif.open_heif\("),
        (of_tool("a.json", {"annotations": [], "datasetId": "x"}), "a.json is Dataloop's own form of JSON"),
        (boxes_of_voc, r"\. Its XML files are VOC's boxes"),
        (segment_anything, r"\. Its JSON files are Segment Anything's \(SA-1B\), whose masks have no classes"),
        (open_images, "object-segmentation.csv is Open Images', which has one mask for each object"),
        (cutouts, "b.png is partly transparent: if that is the mask, make it a file of its own"),
    ],
)
def test_what_is_recognised_and_cannot_be_read(tmp_path, make, said):
    put_image(tmp_path / "a.png")
    make(tmp_path)
    with pytest.raises(UserError, match=said):
        open_dataset(tmp_path)


def test_masks_of_ground_truth_under_other_names(tmp_path):
    """Its folders look like those of images and masks, and no name fits."""
    put_image(tmp_path / "images" / "b.png")
    put_image(tmp_path / "annotations" / "0_2024.png")
    ground_truth(tmp_path)
    with pytest.raises(UserError, match="none of the images in .* has a mask. output.manifest is that of SageMaker"):
        open_dataset(tmp_path)


def test_cutouts_as_masks(tmp_path):
    put_image(tmp_path / "images" / "b.png", (4, 4))
    (tmp_path / "masks").mkdir()
    cutouts(tmp_path / "masks")
    pixels = np.array(Image.open(tmp_path / "masks" / "b.png"))
    pixels[0, :, :3], pixels[3, :, :3] = (10, 20, 30), (40, 50, 60)
    Image.fromarray(pixels).save(tmp_path / "masks" / "b.png")
    with pytest.raises(UserError, match="nothing says which colour is which class .* b.png is partly transparent"):
        open_dataset(tmp_path)
    cutouts(tmp_path / "masks")
    assert not (report := check_data(tmp_path)).ok
    assert 'if the transparency is the mask: Image.open("a.png").getchannel("A")' in str(report)
