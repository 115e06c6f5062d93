"""DeepLab v3+ on light encoders, for ordinary computers: your own images, CamVid, and the built-in scenes."""

from __future__ import annotations

import dataclasses

from degrid.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig


def folder() -> RunConfig:
    """Your own images: defaults for a few hundred photographs on an ordinary computer.

    DeepLab v3+ on MobileNetV2 at output stride 16, from ImageNet weights.
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
    run = folder()
    return dataclasses.replace(
        run,
        name="camvid",
        data=dataclasses.replace(run.data, path="camvid"),
        train=dataclasses.replace(run.train, steps=1050, eval_every=250),
    )


def synthetic() -> RunConfig:
    """The built-in scenes: a small ResNet at output stride 8, from scratch, in about two minutes on 2 CPU cores.

    Command: degrid train synthetic
    """
    return RunConfig(
        name="synthetic",
        model=ModelConfig(
            network="deeplabv3plus",
            encoder="timm:resnet10t",
            pretrained=False,
            output_stride=8,
            channels=64,
        ),
        data=DataConfig(path="synthetic", crop=(128, 128), scale=(0.8, 1.4)),
        optim=OptimConfig(name="adamw", lr=3e-3, head_factor=1.0, head_bias_factor=1.0, weight_decay=1e-2, warmup=20),
        train=TrainConfig(steps=300, batch_size=8, eval_every=100, ema=0.98, class_weights="sqrt_median_frequency"),
    )
