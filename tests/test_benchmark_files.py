"""The benchmarks' own files: what their test servers take, ADE20K's layout, and lists made from downloads."""

import sys
import tarfile
import types

import numpy as np
import pytest
import torch
from PIL import Image
from test_run import cli

import degrid
from degrid.data import CITYSCAPES_LABEL_IDS, check_data, open_dataset, prepare_benchmark
from degrid.data.formats.benchmarks.cityscapes import CITYSCAPES, CITYSCAPES_RAW
from degrid.data.formats.benchmarks.voc import VOC
from degrid.data.prepare.cityscapes import prepare_cityscapes
from degrid.data.prepare.voc import prepare_voc
from degrid.types import IGNORE_INDEX, UserError, voc_palette
from degrid.verbs.outputs import CityscapesFiles, VocFiles


def put(file, values):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(file)


def put_image(file, size=(4, 5)):
    put(file, np.random.default_rng(len(file.name)).integers(0, 256, (*size, 3)))


def pixels(file):
    with Image.open(file) as image:
        assert image.mode in ("L", "P")
        return np.asarray(image).tolist()


def files_below(folder):
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Tiny untrained models of VOC's and of Cityscapes' number of classes."""
    folder = tmp_path_factory.mktemp("models")
    for classes in (21, 19):
        torch.manual_seed(classes)
        degrid.save(degrid.deeplabv3("timm:test_resnet", classes, pretrained=False, channels=8), folder / str(classes))
    return folder


# ---- what the test servers take -----------------------------------------------------------------------------


def test_voc_archive(tmp_path):
    images = [tmp_path / "2008_000002.jpg", tmp_path / "2008_000001.jpg"]
    ids = {image: np.arange(k, k + 20, dtype=np.uint8).reshape(4, 5) for k, image in enumerate(images)}
    folder = "results/VOC2012/Segmentation/comp5_test_cls"
    put(tmp_path / "out" / folder / "earlier.png", [[0]])  # of an earlier run: not in the archive
    files = VocFiles(tmp_path / "out", 21, images, "comp5")
    for image in images:
        files.write(image, ids[image])
    assert files.finish() == f"2 images in {tmp_path / 'out' / folder}; to upload: {tmp_path / 'out' / 'results.tgz'}"
    with tarfile.open(tmp_path / "out" / "results.tgz", "r:gz") as packed:
        assert packed.getnames() == [f"{folder}/2008_000001.png", f"{folder}/2008_000002.png"]
        for image in images:
            with Image.open(packed.extractfile(f"{folder}/{image.stem}.png")) as png:
                assert png.mode == "P"
                assert np.asarray(png).tolist() == ids[image].tolist()
                assert png.getpalette()[: 3 * 21] == [value for color in voc_palette(21) for value in color]


def test_cityscapes_label_ids_and_back(tmp_path):
    image = tmp_path / "berlin_000000_000019_leftImg8bit.png"
    ids = np.arange(19, dtype=np.uint8)[None]
    files = CityscapesFiles(tmp_path / "out", 19, [image, tmp_path / "other.jpg"], CITYSCAPES_LABEL_IDS)
    files.write(image, ids)
    files.write(tmp_path / "other.jpg", ids[:, ::-1])
    assert files_below(tmp_path / "out") == ["berlin_000000_000019_pred.png", "other_pred.png"]
    written = tmp_path / "out" / "berlin_000000_000019_pred.png"
    with Image.open(written) as png:
        assert png.mode == "L"
    # The ids of cityscapesScripts' labels.py.
    expected = [[7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]]
    assert pixels(written) == expected
    assert CITYSCAPES_RAW.apply(np.array(pixels(written)))[0].tolist() == ids.tolist()
    assert files.finish() == f"2 images as label ids in {tmp_path / 'out'}"


def test_predict_for_the_benchmarks(models, tmp_path):
    for city in ("bonn", "ulm"):
        put_image(tmp_path / "photos" / city / f"{city}_0_1_leftImg8bit.png", (33, 40))
    photo = tmp_path / "photos" / "ulm" / "ulm_0_1_leftImg8bit.png"

    def predicted(classes):
        return degrid.Predictor(degrid.load(models / str(classes)), device="cpu")(photo)

    words = ["predict", tmp_path / "photos", "--device", "cpu"]
    words.insert(1, models / "21")
    code, output = cli(*words, "-o", tmp_path / "voc", "--format", "voc")
    assert code == 0, output
    assert output.strip().endswith(f"to upload: {tmp_path / 'voc' / 'results.tgz'}")
    folder = "results/VOC2012/Segmentation/comp6_test_cls"
    names = [f"{folder}/{city}_0_1_leftImg8bit.png" for city in ("bonn", "ulm")]
    assert files_below(tmp_path / "voc") == ["results.tgz", *names]
    assert pixels(tmp_path / "voc" / names[1]) == predicted(21).tolist()

    words[1] = models / "19"
    code, output = cli(*words, "-o", tmp_path / "city", "--format", "cityscapes")
    assert code == 0, output
    assert files_below(tmp_path / "city") == ["bonn_0_1_pred.png", "ulm_0_1_pred.png"]
    assert pixels(tmp_path / "city" / "ulm_0_1_pred.png") == np.array(CITYSCAPES_LABEL_IDS)[predicted(19)].tolist()

    assert cli(*words, "-o", tmp_path / "ids", "--no-overlay")[0] == 0
    assert files_below(tmp_path / "ids") == [
        "bonn/bonn_0_1_leftImg8bit.png",
        "summary.json",
        "ulm/ulm_0_1_leftImg8bit.png",
    ]


def test_no_archive_without_all_images(models, tmp_path):
    put_image(tmp_path / "photos" / "a.jpg", (33, 33))
    (tmp_path / "photos" / "b.jpg").write_bytes(b"no image")
    code, output = cli("predict", models / "21", tmp_path / "photos", "-o", tmp_path / "out", "--format", "voc")
    assert code == 2
    assert "1 of 2 images could not be used" in output
    assert not (tmp_path / "out" / "results.tgz").exists()


def test_mistakes_with_formats(models, tmp_path):
    put_image(tmp_path / "photos" / "x" / "a.jpg")
    put_image(tmp_path / "photos" / "y" / "a.jpg")

    def fails(model, *words):
        code, output = cli("predict", models / model, tmp_path / "photos", "-o", tmp_path / "out", *words)
        assert code == 2
        assert not (tmp_path / "out").exists()
        return output

    assert "VOC has 21 classes, the model has 19" in fails("19", "--format", "voc")
    assert "Cityscapes has 19 classes, the model has 21" in fails("21", "--format", "cityscapes")
    assert 'unknown format "png". Known: ids, voc, cityscapes' in fails("21", "--format", "png")
    assert "leave out --overlay and --save-logits" in fails("21", "--format", "voc", "--overlay")
    assert "leave out --overlay and --save-logits" in fails("21", "--format", "voc", "--save-logits")
    assert "share a name, by which VOC tells images apart" in fails("21", "--format", "voc")
    (tmp_path / "photos" / "y" / "a.jpg").unlink()
    assert 'unknown VOC competition "comp7"' in fails("21", "--format", "voc", "--voc-comp", "comp7")


# ---- ADE20K -------------------------------------------------------------------------------------------------


def ade(root, stem="ADE_{}_00000001"):
    raw = [[0, 1, 2, 150]]
    for folder, word in (("training", "train"), ("validation", "val")):
        put_image(root / "images" / folder / f"{stem.format(word)}.jpg", (1, 4))
        put(root / "annotations" / folder / f"{stem.format(word)}.png", raw)
    return root


def test_ade_ids(tmp_path):
    root = ade(tmp_path / "ADEChallengeData2016")
    for place in (tmp_path, root):
        for split in ("train", "val"):
            dataset = open_dataset(place, split)
            assert dataset[0].label.tolist() == [[IGNORE_INDEX, 0, 1, 149]]
            assert dataset[0].name == f"ADE_{split}_00000001"
        assert (dataset.labels.names[0], dataset.labels.names[149]) == ("object 1", "object 150")
        assert dataset.labels.colors == voc_palette(150)
    assert check_data(root).kind == "ADE20K"
    # Recognised by its file names in another folder.
    assert open_dataset(ade(tmp_path / "renamed"))[0].label.tolist() == [[IGNORE_INDEX, 0, 1, 149]]


def test_data_that_lie_like_ade_keep_their_ids(tmp_path):
    ade(tmp_path / "mine", "{}_1")
    dataset = open_dataset(tmp_path / "mine")
    assert dataset[0].label.tolist() == [[0, 1, 2, 150]]


def test_ade_with_a_table_of_classes(tmp_path):
    root = ade(tmp_path / "ADEChallengeData2016")
    for count, label in ((150, [IGNORE_INDEX, 0, 1, 149]), (151, [0, 1, 2, 150])):  # 151: void made a class
        (root / "classes.txt").write_text("".join(f"name {k}\n" for k in range(count)))
        dataset = open_dataset(root)
        assert dataset.labels.names == tuple(f"name {k}" for k in range(count))
        assert dataset[0].label.tolist() == [label]


@pytest.mark.parametrize("ending", ["txt", "csv"])
def test_ade_names(tmp_path, ending):
    root = ade(tmp_path / "data", "{}_1")
    rows = [("Idx", "Ratio", "Name")]
    rows += [(f"{k}   ", "0.1", f"thing {k}, other word") for k in range(150, 0, -1)]
    lines = ["\t".join(row) if ending == "txt" else '{},{},"{}"'.format(*row) for row in rows]
    table = root / f"objectInfo150.{ending}"
    table.write_text("\n".join(lines) + "\n")
    dataset = open_dataset(root)
    assert dataset.labels.names == tuple(f"thing {k}" for k in range(1, 151))
    assert dataset[0].label.tolist() == [[IGNORE_INDEX, 0, 1, 149]]
    table.write_text("\n".join(lines[:-1]))
    with pytest.raises(UserError, match="expected the classes 1 to 150, got 149 classes"):
        open_dataset(root)
    table.write_text("Idx\tWord\n1\twall\n")
    code, output = cli("data", "stats", root)
    assert code == 2
    assert "expected the columns Idx and Name" in output


# ---- degrid data prepare ------------------------------------------------------------------------------------


def voc(root):
    """Five photographs: t1, t2 and v1, v2 with labels, x without."""
    for name in ("t1", "t2", "v1", "v2", "x"):
        put_image(root / "JPEGImages" / f"{name}.jpg", (1, 3))
    for name, ids in (("t1", [[1, 2, 255]]), ("v1", [[3, 4, 255]])):
        put(root / "SegmentationClass" / f"{name}.png", ids)
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("v1\nv2\n")
    return root


def test_prepare_voc_without_trainaug(tmp_path):
    root = voc(tmp_path / "VOCdevkit" / "VOC2012")
    for name in ("t2", "t1", "v1", "v2"):
        put(root / "SegmentationClassAug" / f"{name}.png", [[1, 2, 0]])
    code, output = cli("data", "prepare", "voc", tmp_path)
    assert code == 0, output
    assert (root / "train.txt").read_text() == (
        "/JPEGImages/t1.jpg /SegmentationClassAug/t1.png\n/JPEGImages/t2.jpg /SegmentationClassAug/t2.png\n"
    )
    # VOC's own mask where there is one.
    assert (root / "val.txt").read_text() == (
        "/JPEGImages/v1.jpg /SegmentationClass/v1.png\n/JPEGImages/v2.jpg /SegmentationClassAug/v2.png\n"
    )
    assert output.splitlines() == [
        f"no trainaug.txt in {root / 'ImageSets' / 'Segmentation'}: train.txt has all of SegmentationClassAug but val",
        f"warning: {root / 'train.txt'}: found 2 images, expected 10,582",
        f"warning: {root / 'val.txt'}: found 2 images, expected 1,449",
        f"classes: {root / 'classes.csv'}",
        f"written to {root}: train.txt, val.txt, classes.csv; train on it: degrid train --data {root / 'train.txt'}",
    ]
    train = open_dataset(root / "train.txt")
    assert train.labels == VOC
    assert train[1].label.tolist() == [[1, 2, 0]]


def test_prepare_voc_with_trainaug(tmp_path, monkeypatch):
    monkeypatch.setattr("degrid.data.prepare.voc._COUNTS", {"train": 2, "val": 2})
    root = voc(tmp_path)
    for name in ("t1", "v2"):
        put(root / "SegmentationClassAug" / f"{name}.png", [[1, 2, 0]])
    (root / "ImageSets" / "Segmentation" / "trainaug.txt").write_text("t2\r\n/JPEGImages/t1.jpg /Some/t1.png\n")
    report = prepare_voc(root)
    assert (root / "train.txt").read_text() == (
        "/JPEGImages/t2.jpg /SegmentationClassAug/t2.png\n/JPEGImages/t1.jpg /SegmentationClassAug/t1.png\n"
    )
    lost = root / "SegmentationClassAug" / "t2.png"
    assert report == [
        f"{root / 'train.txt'}: found 2 images, expected 2",
        f"warning: train.txt: 1 file is not there, {lost}",
        f"{root / 'val.txt'}: found 2 images, expected 2",
        f"classes: {root / 'classes.csv'}",
        f"written to {root}: train.txt, val.txt, classes.csv; not ready to train on: see the warnings",
    ]
    again = f"written to {root}: train.txt, val.txt; not ready to train on: see the warnings"
    assert prepare_voc(root) == [*report[:-2], again]  # the table is there


def test_prepare_voc_from_sbd(tmp_path, monkeypatch):
    root = voc(tmp_path / "VOC2012")
    cls = tmp_path / "benchmark_RELEASE" / "dataset" / "cls"
    cls.mkdir(parents=True)
    for name in ("t1", "t2", "v2"):
        (cls / f"{name}.mat").write_text(name)
    monkeypatch.setitem(sys.modules, "scipy.io", None)  # as if it were not installed
    code, output = cli("data", "prepare", "voc", tmp_path)
    assert code == 2
    assert f"3 of SBD's .mat files in {cls} are not converted: that needs scipy" in output
    assert not (root / "train.txt").exists()

    values = {"t1": [[9, 9, 9]], "t2": [[5, 6, 0]], "v2": [[7, 8, 0]]}

    def loadmat(file):
        record = np.zeros((1, 1), dtype=[("Segmentation", object)])
        record[0, 0]["Segmentation"] = np.array(values[file.read_text()], np.uint8)
        return {"GTcls": record}

    monkeypatch.setitem(sys.modules, "scipy", types.ModuleType("scipy"))
    monkeypatch.setitem(sys.modules, "scipy.io", types.SimpleNamespace(loadmat=loadmat))
    steps = []
    report = prepare_voc(tmp_path, lambda p: steps.append((p.done, p.total)))
    assert report[0] == f"4 masks made in {root / 'SegmentationClassAug'}"
    assert steps == [(k, 4) for k in range(1, 5)]
    made = {file.stem: pixels(file) for file in sorted((root / "SegmentationClassAug").iterdir())}
    # t1 and v1 have masks of VOC's own.
    assert made == {"t1": [[1, 2, 255]], "t2": [[5, 6, 0]], "v1": [[3, 4, 255]], "v2": [[7, 8, 0]]}
    assert [line.split()[0] for line in (root / "train.txt").read_text().splitlines()] == [
        "/JPEGImages/t1.jpg",
        "/JPEGImages/t2.jpg",
    ]
    assert not any("masks made" in line for line in prepare_voc(tmp_path))

    # What is left over is a warning once there is a folder; a damaged file is an error.
    (cls / "x.mat").write_text("x")
    code, output = cli("data", "prepare", "voc", tmp_path)
    assert code == 2
    assert "x.mat is damaged, or not one of SBD's class labels" in output
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    assert prepare_voc(tmp_path)[0].startswith("warning: 1 of SBD's .mat files")


def test_prepare_cityscapes(tmp_path, monkeypatch):
    monkeypatch.setattr("degrid.data.prepare.cityscapes._COUNTS", {"train": 2, "val": 500, "test": 1})
    raw = [[*range(34)]]
    truth = [[CITYSCAPES_LABEL_IDS.index(k) if k in CITYSCAPES_LABEL_IDS else IGNORE_INDEX for k in range(34)]]
    for split, name in (("train", "ulm_0_2"), ("train", "ulm_0_1"), ("val", "bonn_0_1"), ("val", "bonn_0_2")):
        city = name.split("_")[0]
        put_image(tmp_path / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", (1, 34))
        if name != "bonn_0_2":
            put(tmp_path / "gtFine" / split / city / f"{name}_gtFine_labelIds.png", raw)
    put_image(tmp_path / "leftImg8bit" / "test" / "mainz" / "mainz_0_1_leftImg8bit.png", (1, 34))
    kept = tmp_path / "gtFine" / "train" / "ulm" / "ulm_0_1_gtFine_labelTrainIds.png"
    put(kept, [[5] * 34])  # what is there stays
    steps = []
    report = prepare_cityscapes(tmp_path, lambda p: steps.append((p.done, p.total)))
    assert steps == [(1, 2), (2, 2)]
    for split, name in (("train", "ulm/ulm_0_2"), ("val", "bonn/bonn_0_1")):
        assert pixels(tmp_path / "gtFine" / split / f"{name}_gtFine_labelTrainIds.png") == truth
    assert pixels(kept) == [[5] * 34]
    assert (tmp_path / "train.txt").read_text() == "".join(
        f"/leftImg8bit/train/ulm/{name}_leftImg8bit.png /gtFine/train/ulm/{name}_gtFine_labelTrainIds.png\n"
        for name in ("ulm_0_1", "ulm_0_2")
    )
    assert (tmp_path / "val.txt").read_text() == (
        "/leftImg8bit/val/bonn/bonn_0_1_leftImg8bit.png /gtFine/val/bonn/bonn_0_1_gtFine_labelTrainIds.png\n"
    )
    assert (tmp_path / "test.txt").read_text() == "/leftImg8bit/test/mainz/mainz_0_1_leftImg8bit.png\n"
    unlabelled = tmp_path / "leftImg8bit" / "val" / "bonn" / "bonn_0_2_leftImg8bit.png"
    assert report == [
        "2 labels made: _gtFine_labelTrainIds.png from _gtFine_labelIds.png",
        f"{tmp_path / 'train.txt'}: found 2 images, expected 2",
        f"warning: val: 1 image has no label, {unlabelled}",
        f"warning: {tmp_path / 'val.txt'}: found 1 image, expected 500",
        f"{tmp_path / 'test.txt'}: found 1 image, expected 1",
        f"classes: {tmp_path / 'classes.csv'}",
        f"written to {tmp_path}: train.txt, val.txt, test.txt, classes.csv; "
        f"train on it: degrid train --data {tmp_path / 'train.txt'}",
    ]
    val = open_dataset(tmp_path / "val.txt", "val")
    assert val.labels == CITYSCAPES
    assert val[0].label.tolist() == truth
    code, output = cli("data", "prepare", "cityscapes", tmp_path)
    assert code == 0
    assert output.startswith("0 labels made")


def test_preparing_from_python_gives_what_the_command_prints(tmp_path):
    for place in ("a", "b"):
        put_image(tmp_path / place / "leftImg8bit" / "val" / "ulm" / "ulm_1_leftImg8bit.png", (1, 34))
        put(tmp_path / place / "gtFine" / "val" / "ulm" / "ulm_1_gtFine_labelIds.png", [[*range(34)]])
    code, output = cli("data", "prepare", "cityscapes", tmp_path / "a")
    assert code == 0
    steps = []
    report = prepare_benchmark("cityscapes", tmp_path / "b", progress=steps.append)
    assert "\n".join(report).replace(str(tmp_path / "b"), str(tmp_path / "a")) == output.strip()
    assert [str(step) for step in steps] == ["making labels 1/1"]


def test_mistakes_with_prepare(tmp_path):
    def fails(*words):
        code, output = cli("data", "prepare", *words)
        assert code == 2
        return output

    assert 'unknown benchmark "kitti". Known: voc, cityscapes, camvid, ade20k, coco' in fails("kitti", tmp_path)
    for benchmark in ("voc", "cityscapes", "camvid", "ade20k", "coco"):
        assert f"no folder at {tmp_path / 'none'}" in fails(benchmark, tmp_path / "none")
    assert "only coco has a choice of classes; voc has one set" in fails("voc", tmp_path, "--classes", "all")
    assert "no JPEGImages in" in fails("voc", tmp_path)
    assert "no folder leftImg8bit in" in fails("cityscapes", tmp_path)
    root = voc(tmp_path / "VOC2012")
    assert f"no SegmentationClassAug in {root}" in fails("voc", tmp_path)
    (root / "ImageSets" / "Segmentation" / "val.txt").unlink()
    assert "val.txt" in fails("voc", tmp_path)
    put_image(tmp_path / "leftImg8bit" / "train" / "ulm" / "ulm_1_leftImg8bit.png")
    label = tmp_path / "gtFine" / "train" / "ulm" / "ulm_1_gtFine_labelIds.png"
    put_image(label)  # the picture in colours in place of the ids
    assert f"{label} has the colours" in fails("cityscapes", tmp_path)
    assert not label.with_name("ulm_1_gtFine_labelTrainIds.png").exists()
    label.write_bytes(b"no image")
    assert f"{label} is not an image" in fails("cityscapes", tmp_path)
