"""Your own folder of images and masks."""

from __future__ import annotations

from degrid.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig


def folder() -> RunConfig:
    """Defaults for some hundred photographs on an ordinary computer.

    DeepLab v3+ on MobileNetV2 at output stride 16, from ImageNet weights; the settings of the CamVid recipe.
    Command: degrid train --data FOLDER
    """
    return RunConfig(
        name="folder",
        model=ModelConfig(network="deeplabv3plus", encoder="timm:mobilenetv2_100", output_stride=16, channels=128),
        data=DataConfig(crop=(320, 320), scale=(0.5, 2.0), jitter=(0.3, 0.3, 0.3, 0.05)),
        optim=OptimConfig(name="adamw", lr=8e-4, head_factor=3.0, head_bias_factor=3.0, weight_decay=0.02, warmup=50),
        train=TrainConfig(steps=1000, batch_size=8, eval_every=100, ema=0.99, class_weights="sqrt_median_frequency"),
    )
