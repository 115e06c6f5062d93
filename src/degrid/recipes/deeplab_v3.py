"""DeepLab v3 and v3+: the papers; two TensorFlow re-implementations, nd (NanqingD) and st (sthalles); and three recipes
with light encoders for ordinary computers, for your own images, CamVid and the built-in scenes.

All but those three need VOC 2012 with trainaug (or Cityscapes) as --data. See `degrid.recipes.deeplab_v2` for
compat=true.
"""

from __future__ import annotations

import dataclasses

from degrid.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig, override

_VOC12 = DataConfig(path="VOC2012", train="trainaug", crop=(513, 513), scale=(0.5, 2.0))


def deeplabv3_voc12() -> RunConfig:
    """DeepLab v3 in two stages: output stride 16 with trained batch norm, then stride 8 with frozen batch norm.

    The first has 30,000 steps of 16 crops: 77.21 val mIoU. `deeplabv3_voc12_stage2` follows automatically.
    Source: arXiv 1706.05587, section 4 and table 5; weight decay from its authors' code (1e-4 for ResNets).
    Command: degrid train deeplabv3_voc12 --data VOC2012; the first stage alone: --set then=
    """
    return override(_voc12("deeplabv3_voc12"), {"then": "deeplabv3_voc12_stage2"})


def _voc12(name: str) -> RunConfig:
    return RunConfig(
        name=name,
        model=ModelConfig(
            network="deeplabv3", encoder="timm:resnet101", output_stride=16, multi_grid=(1, 2, 4), uniform_rates=True
        ),
        data=_VOC12,
        optim=OptimConfig(lr=0.007, weight_decay=1e-4, head_factor=1.0, head_bias_factor=1.0),
        train=TrainConfig(steps=30_000, batch_size=16),
    )


def deeplabv3_voc12_stage2() -> RunConfig:
    """DeepLab v3, second stage, from the first: output stride 8, batch norm frozen, learning rate 0.001, trainval.

    78.51 val mIoU when trained on trainaug (table 6).
    Command: degrid train deeplabv3_voc12_stage2 --data VOC2012 --init MODEL (deeplabv3_voc12 runs it automatically)
    """
    changes = {"model.output_stride": 8, "data.train": "trainval", "optim.lr": 0.001, "train.batch_norm": "frozen"}
    return override(_voc12("deeplabv3_voc12_stage2"), changes)


def deeplabv3_cityscapes() -> RunConfig:
    """DeepLab v3 on Cityscapes: 90,000 steps on crops of 769, evaluated on whole images: 77.23 val mIoU.

    Source: arXiv 1706.05587, section A and table 12.
    Command: degrid train deeplabv3_cityscapes --data cityscapes
    """
    data = {"data.path": "cityscapes", "data.train": "train", "data.crop": (769, 769)}
    return override(_voc12("deeplabv3_cityscapes"), {**data, "train.steps": 90_000})


def deeplabv3plus_voc12() -> RunConfig:
    """DeepLab v3+: v3's first stage with the decoder: 78.85 val mIoU (table 3, output stride 16).

    Source: arXiv 1802.02611, section 4.
    Command: degrid train deeplabv3plus_voc12 --data VOC2012
    """
    return override(_voc12("deeplabv3plus_voc12"), {"model.network": "deeplabv3plus"})


def nd_voc12(compat: bool = False) -> RunConfig:
    """NanqingD/DeepLabV3-Tensorflow: 600,000 steps of 4 crops from 0.01: 70.63 val mIoU in its README.

    compat=true: BGR input for RGB weights, TensorFlow's padding and resizing.
    Command: degrid train nd_voc12 --data VOC2012 --set model.pretrained=FOLDER (a converted resnet_v1_101.ckpt)
    """
    caffe_mean = (104.00698793, 116.66876762, 122.67891434)
    model = ModelConfig(
        network="deeplabv3",
        encoder="slim:resnet_v1_101",
        output_stride=16,
        multi_grid=(1, 2, 4),
        rates=(6, 12, 18),
        dropout=0.0,
        legacy=compat,
    )
    return RunConfig(
        name="nd_voc12",
        compat=compat,
        model=dataclasses.replace(model, mean=caffe_mean, std=(1.0, 1.0, 1.0), bgr=True) if compat else model,
        data=_VOC12,
        optim=OptimConfig(lr=0.01, weight_decay=1e-4, head_factor=1.0, head_bias_factor=1.0),
        train=TrainConfig(steps=600_000, batch_size=4),
    )


def st_voc12(compat: bool = False) -> RunConfig:
    """sthalles/deeplab_v3: Adam at a constant 1e-5, colour distortion: about 74 by its per-image metric.

    Its training never ends; the 100,000 steps are degrid's choice. compat=true: no weight decay (its regulariser is
    never added to the loss), features before the last batch norm, a head without ReLU, TensorFlow's padding and
    resizing, and crops from the middle of the image.
    Command: degrid train st_voc12 --data VOC2012 --set model.pretrained=FOLDER (a converted resnet_v2_50.ckpt)
    """
    return RunConfig(
        name="st_voc12",
        compat=compat,
        model=ModelConfig(
            network="deeplabv3_linear" if compat else "deeplabv3",
            encoder="slim:resnet_v2_50",
            output_stride=16,
            multi_grid=(1, 2, 4),
            rates=(6, 12, 18),
            dropout=0.0,
            legacy=compat,
        ),
        data=dataclasses.replace(_VOC12, jitter=(0.125, 0.5, 0.5, 0.2), centred=compat),
        optim=OptimConfig(
            name="adamw",
            lr=1e-5,
            power=0.0,
            weight_decay=0.0 if compat else 1e-4,
            head_factor=1.0,
            head_bias_factor=1.0,
        ),
        train=TrainConfig(steps=100_000, batch_size=8),
    )


def folder() -> RunConfig:
    """Your own images: defaults for a few hundred photographs on an ordinary computer.

    DeepLab v3+ on MobileNetV2 at output stride 16, from ImageNet weights. The dilated convolutions are plain,
    which cost the least: smoothing makes no difference here, SSC scores better at output stride 8 without a decoder
    (docs/study.md).
    Command: degrid train --data FOLDER
    """
    return RunConfig(
        name="folder",
        model=ModelConfig(network="deeplabv3plus", encoder="timm:mobilenetv2_100", output_stride=16, channels=128),
        data=DataConfig(crop=(320, 320), scale=(0.5, 2.0), jitter=(0.3, 0.3, 0.3, 0.05)),
        optim=OptimConfig(name="adamw", lr=8e-4, head_factor=3.0, head_bias_factor=3.0, weight_decay=0.02, warmup=50),
        train=TrainConfig(steps=1000, batch_size=8, eval_every=100, ema=0.99, class_weights="sqrt_median_frequency"),
    )


def camvid() -> RunConfig:
    """CamVid, 11 classes, 480x360, with the settings of `folder`: 58.9 test mIoU in 20 minutes on 2 CPU cores.

    Source of the number: docs/results.md.
    Command: degrid train camvid --data CamVid --set model.pretrained=mobilenet_v2.pth
    """
    changes = {"name": "camvid", "data.path": "camvid", "train.steps": 1050, "train.eval_every": 250}
    return override(folder(), changes)


def synthetic() -> RunConfig:
    """The built-in scenes: a small ResNet at output stride 8, from scratch, in about two minutes on 2 CPU cores.

    Command: degrid train synthetic
    """
    return RunConfig(
        name="synthetic",
        model=ModelConfig(
            network="deeplabv3plus", encoder="timm:resnet10t", pretrained=False, output_stride=8, channels=64
        ),
        data=DataConfig(path="synthetic", crop=(128, 128), scale=(0.8, 1.4)),
        optim=OptimConfig(name="adamw", lr=3e-3, head_factor=1.0, head_bias_factor=1.0, weight_decay=1e-2, warmup=20),
        train=TrainConfig(steps=300, batch_size=8, eval_every=100, ema=0.98, class_weights="sqrt_median_frequency"),
    )
