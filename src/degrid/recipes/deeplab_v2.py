"""DeepLab v2: the paper, and the code that followed it.

Every recipe needs VOC 2012 with the 10,582 images of trainaug (or Cityscapes) as --data, and weights to start from:
--init FOLDER for a converted segmentation model, or --set model.pretrained=FOLDER for converted ImageNet weights.

The names of the codes are those of `degrid convert`: eth (Ziegler et al.), kdd (Wang & Ji), zw (zhengyang-wang), ds
(DrSleep), is (isht7). With compat=true a recipe follows the code where that differs from the paper: `model.legacy`
(padding, resizing, batch norm, smoothing operators), the numbers in its docstring and, in cyclic training, the repeated
step between cycles and the same crops in every cycle.
"""

from __future__ import annotations

from degrid.config import DataConfig, ModelConfig, OptimConfig, RunConfig, SmoothingConfig, TrainConfig, override
from degrid.types import MSC_SCALES


def _voc12(
    name: str,
    compat: bool,
    *,
    operator: str = "regular",
    lr: float = 2.5e-4,
    weight_decay: float = 5e-4,
    multi_scale: bool = False,
    init_head: bool = True,
) -> RunConfig:
    """Common to these code bases: ResNet-101 at output stride 8, summed ASPP, 20,000 steps of 10 crops.

    Batch norm is frozen, the loss at the logits' size, the schedule poly 0.9, momentum 0.9, the learning rate 10x for
    the head and 20x for its biases; images are scaled by 0.5 to 1.5 and flipped.

    Source: DeepLab v2 (arXiv 1606.00915) sections 4.1 and 4.1.2.
    """
    return RunConfig(
        name=name,
        compat=compat,
        model=ModelConfig(
            network="deeplabv2",
            encoder="caffe:resnet101",
            output_stride=8,
            smoothing=SmoothingConfig(operator),
            scales=MSC_SCALES if multi_scale else (),
            legacy=compat,
        ),
        data=DataConfig(path="VOC2012", train="trainaug", crop=(321, 321), scale=(0.5, 1.5)),
        optim=OptimConfig(lr=lr, weight_decay=weight_decay),
        train=TrainConfig(
            init_head=init_head,
            steps=20_000,
            batch_size=1 if multi_scale else 10,
            accumulate=10 if multi_scale else 1,
            batch_norm="frozen",
            loss_size="logits",
            eval_every=2000,
        ),
    )


def deeplabv2_voc12() -> RunConfig:
    """DeepLab v2 with multi-scale input on VOC 2012: 76.35 val mIoU from MS-COCO weights (table 4).

    Source: arXiv 1606.00915, section 4.1; scales are resized as by Caffe's Interp layer.
    Command: degrid train deeplabv2_voc12 --data VOC2012 --init INIT
    """
    return override(_voc12("deeplabv2_voc12", False, multi_scale=True), {"model.resize": "align_corners"})


def eth_voc12(compat: bool = False) -> RunConfig:
    """Ziegler et al.: average filter before the dilated convolutions, learning rate 0.002, weight decay 1e-4.

    Ten cycles of 2000 steps and a validation (its train_test). Only the encoder starts from the given model. The
    authors report 24 h on a GTX 1080 Ti.
    Source: arXiv 1903.07992; setup.sh and main.py of its code.
    Command: degrid train eth_voc12 --data VOC2012 --init INIT [--operator ssc] [--set compat=true]
    """
    run = _voc12("eth_voc12", compat, operator="average", lr=2e-3, weight_decay=1e-4, init_head=False)
    return override(run, {"train.cyclic": True})


def eth_cityscapes(compat: bool = False) -> RunConfig:
    """Ziegler et al. on Cityscapes: 3 crops of 719, learning rate 1e-4, 80,000 steps; 92 h on a GTX 1080 Ti.

    Source: arXiv 1903.07992; setup.sh of its code.
    Command: degrid train eth_cityscapes --data cityscapes --init INIT
    """
    data = {"data.path": "cityscapes", "data.train": "train", "data.crop": (719, 719)}
    training = {"optim.lr": 1e-4, "train.steps": 80_000, "train.batch_size": 3}
    return override(eth_voc12(compat), {"name": "eth_cityscapes", **data, **training})


def kdd_voc12(compat: bool = False) -> RunConfig:
    """Wang & Ji: group interaction, learning rate 0.001: 75.4 val mIoU from MS-COCO weights, 72.3 from ImageNet's.

    Source: KDD 2018 (arXiv 1808.08931) section 4.2 and table 1; main.py of its code.
    Command: degrid train kdd_voc12 --data VOC2012 --init INIT [--operator ssc]
    """
    return _voc12("kdd_voc12", compat, operator="gi", lr=1e-3, init_head=False)


def zw_voc12(compat: bool = False) -> RunConfig:
    """zhengyang-wang/Deeplab-v2--ResNet-101--Tensorflow, single scale: 75.4 val mIoU reported by a user.

    Command: degrid train zw_voc12 --data VOC2012 --init INIT
    """
    return _voc12("zw_voc12", compat, init_head=False)


def zw_voc12_msc(compat: bool = False) -> RunConfig:
    """`zw_voc12` with multi-scale input: losses at 1, 0.75, 0.5 and of their maximum, 10 accumulated images a step.

    Command: degrid train zw_voc12_msc --data VOC2012 --init INIT
    """
    return _voc12("zw_voc12_msc", compat, multi_scale=True, init_head=False)


def ds_voc12(compat: bool = False) -> RunConfig:
    """DrSleep/tensorflow-deeplab-resnet. By default its code (compat=true) neither scales nor flips.

    Command: degrid train ds_voc12 --data VOC2012 --init INIT
    """
    return override(_voc12("ds_voc12", compat), {"data.scale": (1.0, 1.0), "data.flip": 0.0} if compat else {})


def is_voc12_msc(compat: bool = False) -> RunConfig:
    """isht7/pytorch-deeplab-resnet, multi-scale: 72.4 val mIoU (data-set level) of its published weights.

    It means to follow Caffe's protocol. Its code (compat=true) makes a tenth of the updates, with biases at 10x, weight
    decay on everything and no momentum between updates.
    Command: degrid train is_voc12_msc --data VOC2012 --init INIT
    """
    run = override(deeplabv2_voc12(), {"name": "is_voc12_msc", "compat": compat, "data.scale": (0.5, 1.3)})
    # Its network is Caffe's: no TensorFlow padding, so model.legacy stays off.
    code = {"optim.head_bias_factor": 10.0, "optim.momentum": 0.0, "optim.decay_all": True, "train.steps": 2000}
    return override(run, code) if compat else run
