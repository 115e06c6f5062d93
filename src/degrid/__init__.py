"""degrid: dilated convolutions without the grid.

Names are loaded when first used, so that `import degrid` costs no torch import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from degrid.types import IGNORE_INDEX, Batch, LabelSpace, Sample, Scores, UserError
from degrid.version import VERSION

if TYPE_CHECKING:
    from degrid.data import check_data, open_dataset
    from degrid.data.annotations import Regions
    from degrid.engine.inference.options import InferenceOptions
    from degrid.engine.inference.predictor import Predictor
    from degrid.engine.training.loop import Stopped
    from degrid.exporters.facts import ImageInput
    from degrid.kernels.crf_settings import CRF
    from degrid.model_folder import load, save
    from degrid.models.dilation import DilationReport, dilate
    from degrid.networks import deeplabv2, deeplabv3, deeplabv3plus
    from degrid.serving.served import ServeLimits
    from degrid.smoothing import SmoothingReport, smooth_dilated_convs
    from degrid.verbs.collect import collect
    from degrid.verbs.compare import Comparison, compare
    from degrid.verbs.convert import convert
    from degrid.verbs.crf_search import CrfSearch, crf_search
    from degrid.verbs.demo import demo
    from degrid.verbs.describe import describe
    from degrid.verbs.erf import ReceptiveField, erf, erf_of_operators
    from degrid.verbs.evaluate import Evaluation, Measures, evaluate
    from degrid.verbs.export import Int8, export
    from degrid.verbs.gridding import GriddingReport, gridding
    from degrid.verbs.hub import from_pretrained, push_to_hub
    from degrid.verbs.lr_find import RateSearch, find_learning_rate
    from degrid.verbs.model_card import CardText
    from degrid.verbs.modernise import modernise
    from degrid.verbs.outputs import ResultFiles
    from degrid.verbs.predict import PredictResult, predict, predict_each
    from degrid.verbs.report import Report, report
    from degrid.verbs.run import RunResult
    from degrid.verbs.serve import serve
    from degrid.verbs.study import StudyProtocol, study
    from degrid.verbs.study_results import StudyResult
    from degrid.verbs.train import train
    from degrid.verbs.write_shards import write_shards

__version__ = VERSION

_MODULES = {
    "data": "check_data open_dataset",
    "data.annotations": "Regions",
    "exporters.facts": "ImageInput",
    "kernels.crf_settings": "CRF",
    "engine.inference.predictor": "Predictor",
    "engine.inference.options": "InferenceOptions",
    "engine.training.loop": "Stopped",
    "model_folder": "load save",
    "models.dilation": "DilationReport dilate",
    "networks": "deeplabv2 deeplabv3 deeplabv3plus",
    "serving.served": "ServeLimits",
    "smoothing": "SmoothingReport smooth_dilated_convs",
    "verbs.compare": "Comparison compare",
    "verbs.crf_search": "CrfSearch crf_search",
    "verbs.gridding": "GriddingReport gridding",
    "verbs.erf": "ReceptiveField erf erf_of_operators",
    "verbs.evaluate": "Evaluation Measures evaluate",
    "verbs.export": "Int8 export",
    "verbs.hub": "from_pretrained push_to_hub",
    "verbs.model_card": "CardText",
    "verbs.lr_find": "RateSearch find_learning_rate",
    "verbs.outputs": "ResultFiles",
    "verbs.predict": "PredictResult predict predict_each",
    "verbs.launch": "Cluster launch",
    "verbs.report": "Report report",
    "verbs.run": "RunResult",
    "verbs.serve": "serve",
    **{
        f"verbs.{name}": name
        for name in ("collect", "convert", "demo", "describe", "modernise", "train", "write_shards")
    },
    "verbs.study": "StudyProtocol study",
    "verbs.study_results": "StudyResult",
}
_HOME = {name: f"degrid.{module}" for module, names in _MODULES.items() for name in names.split()}

__all__ = [
    "CRF",
    "IGNORE_INDEX",
    "Batch",
    "CardText",
    "Cluster",
    "Comparison",
    "CrfSearch",
    "DilationReport",
    "Evaluation",
    "GriddingReport",
    "ImageInput",
    "InferenceOptions",
    "Int8",
    "LabelSpace",
    "Measures",
    "PredictResult",
    "Predictor",
    "RateSearch",
    "ReceptiveField",
    "Regions",
    "Report",
    "ResultFiles",
    "RunResult",
    "Sample",
    "Scores",
    "ServeLimits",
    "SmoothingReport",
    "Stopped",
    "StudyProtocol",
    "StudyResult",
    "UserError",
    "check_data",
    "collect",
    "compare",
    "convert",
    "crf_search",
    "deeplabv2",
    "deeplabv3",
    "deeplabv3plus",
    "demo",
    "describe",
    "dilate",
    "erf",
    "erf_of_operators",
    "evaluate",
    "export",
    "find_learning_rate",
    "from_pretrained",
    "gridding",
    "launch",
    "load",
    "modernise",
    "open_dataset",
    "predict",
    "predict_each",
    "push_to_hub",
    "report",
    "save",
    "serve",
    "smooth_dilated_convs",
    "study",
    "train",
    "write_shards",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'degrid' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return ["__version__", *__all__]
