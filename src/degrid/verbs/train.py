"""degrid.train: a recipe or your data in, a run folder out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from degrid import config as configs
from degrid import recipes
from degrid.arguments import checked
from degrid.config import RunConfig, Settings
from degrid.data import absolute, open_dataset
from degrid.data.dataset import is_built_in
from degrid.data.formats.hugging_face.address import PREFIX
from degrid.engine.training.loop import Stopped
from degrid.lookup import file_meant
from degrid.model_folder import read_settings
from degrid.model_places import is_named
from degrid.types import OnProgress, Tell, UserError
from degrid.verbs.run import RunResult, run

ANYWHERE = (
    *("data.workers", "train.device", "train.timeout", "train.asynchronous.workers", "train.asynchronous.cores"),
    *("train.asynchronous.address", "train.asynchronous.max_staleness"),
)
"""Settings that may change when a run is continued: they say where it runs, and on how many devices."""


@checked
def train(
    recipe: str | Path | RunConfig | None = None,
    *,
    data: str | Path | None = None,
    operator: str | None = None,
    settings: Settings = (),
    init: str | Path | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    start_iteration: int | None = None,
    progress: OnProgress | None = None,
    tell: Tell | None = None,
) -> RunResult:
    """Train a network, as `degrid train` does.

        degrid.train(data="my_photos", operator="ssc")
        degrid.train("camvid", data="CamVid", settings={"train.steps": 2000, "train.device": "cuda"})
        degrid.train(resume="runs/my_photos")

    If a recipe's setting `then` names another recipe, training continues with it from the best model of the stage
    before; its folder is that of the first stage with "_stage2", "_stage3", ... added.

    Args:
        recipe: a recipe's name, "module:function" of your own, the run.json of an earlier run, or a config; by default
            good settings for a folder of your own, or for the built-in scenes.
        data: a folder of images and masks or of shards, a dataset.yaml, a list file, the address of a folder of shards,
            "synthetic" (the built-in scenes), or "module:Dataset"; by default the recipe's.
        operator: smoothing operator for the dilated convolutions, such as "ssc"; by default the recipe's.
        settings: any other settings, for every stage; they win over the arguments above. With `resume` only those of
            `ANYWHERE`.
        init: start from this model or run folder: its weights and, without a recipe, its network.
        out: the run folder; by default runs/NAME.
        resume: continue the run in this folder with its own settings, whichever stage was stopped; see `ANYWHERE`.
        start_iteration: with `resume`, go on from this validation of the first stage, from 1; see keep_checkpoints.
        progress: called after every step and every validated image.
        tell: called with sentences for people: what is trained, what was decided for you, how validations went.
    Raises:
        UserError: settings or data that cannot be used, or a folder that holds a run already. What could stop a later
            stage is checked before the first begins.
        Stopped: the run was stopped by Ctrl-C or SIGTERM; it is saved.
    """
    given = configs.parse_settings(settings)
    if resume is not None:
        _check_own_settings(given, recipe, data, operator, init, out)
        folder = Path(resume)
        config = _elsewhere(config_in(folder), given)
    else:
        if start_iteration is not None:
            raise UserError("--start-iteration (start_iteration=...) needs a run; give it beside --resume (resume=...)")
        config = run_config(recipe, data=data, operator=operator, settings=given, init=init)
        folder = Path(out) if out is not None else Path("runs") / config.name
    try:
        for stage, place in _stages(config, folder, given, resume is not None):
            goes_on = resume is not None and (place / "run.json").exists()
            stage = _elsewhere(config_in(place), given) if goes_on else stage
            iteration = start_iteration if place == folder else None
            result = run(stage, place, resume=goes_on, start_iteration=iteration, progress=progress, tell=tell)
    except Stopped:
        raise Stopped(folder) from None  # resuming the first stage's folder continues with the one that was stopped
    return result


@checked
def run_config(
    recipe: str | Path | RunConfig | None = None,
    *,
    data: str | Path | None = None,
    operator: str | None = None,
    settings: Settings = (),
    init: str | Path | None = None,
) -> RunConfig:
    """The complete settings with which `train` would train, given the same arguments.

    Raises:
        UserError: neither a recipe nor data, or a setting that does not exist or has the wrong type.
    """
    if recipe is None and data is None:
        raise UserError(
            "say what to train: --data FOLDER (data=...), or a recipe (recipe=...): " + ", ".join(recipes.RECIPES)
        )
    given = configs.parse_settings(settings)
    if isinstance(recipe, RunConfig):
        config = recipe
    else:
        _refuse_folder(recipe)
        usual = "synthetic" if is_built_in(data) else "folder"
        config = recipes.load(usual if recipe is None else str(recipe), compat=given.get("compat") is True)
    if init is not None and recipe is None:
        config = dataclasses.replace(config, model=read_settings(init))
    own = {
        # Absolute paths, so that run.json works from any folder.
        "data.path": absolute(data) if data is not None else None,
        "model.smoothing.operator": operator,
        "train.init": str(init if is_named(init) else Path(init).absolute()) if init is not None else None,
        "name": _name_of(absolute(data)) if recipe is None and data is not None else None,
    }
    return configs.override(config, {**{key: value for key, value in own.items() if value is not None}, **given})


def _refuse_folder(recipe: str | Path | None) -> None:
    """Refuse data, or a run, in the place of a recipe.

    Raises:
        UserError: says where each is given.
    """
    if recipe is not None and str(recipe) not in recipes.RECIPES and Path(recipe).is_dir():
        raise UserError(
            f"{recipe} is a folder, and no recipe: train on its images with --data {recipe} (data=...); a run is "
            "repeated by its run.json"
        )


def _elsewhere(config: RunConfig, given: Mapping[str, object]) -> RunConfig:
    """The settings of a run with those of where it is continued.

    Raises:
        UserError: a value of a wrong type, or a run by workers that wait for one another would not do so any more, or
            the other way round: which images were learned from is kept differently.
    """
    changed = configs.override(config, given)
    before, now = (bool(each.train.asynchronous.workers) for each in (config, changed))
    if before != now:
        raise UserError(
            "setting train.asynchronous.workers (--async): this run was begun "
            + ("with it; continue it with 1 or more" if before else "without it; continue it without, or begin another")
        )
    return changed


def _check_own_settings(given: Mapping[str, object], *others: object) -> None:
    """Refuse settings that would make a continued run another one.

    Raises:
        UserError: there is such a setting, or another argument.
    """
    if given.keys() - set(ANYWHERE) or any(each is not None for each in others):
        raise UserError(
            "--resume (resume=...) continues a run with its own settings; give no other settings with it except "
            + ", ".join(ANYWHERE)
        )


def config_in(folder: Path) -> RunConfig:
    """The settings of the run in a folder.

    Raises:
        UserError: there is none.
    """
    if not folder.is_dir():
        raise UserError(f"there is no run folder {folder} to resume (resume=...).{file_meant(folder)}")
    return recipes.load(str(folder / "run.json"))


def _name_of(data: str) -> str:
    """The name of the data's folder, or the word that stands for them; "_" for what a run's name cannot hold."""
    path = Path(data.partition("?")[0] if data.startswith(PREFIX) else data).absolute()
    name = path.parent.name if path.suffix in (".yaml", ".yml", ".txt") else path.name.replace(":", "_")
    return name.encode("utf-8", "replace").decode().replace("?", "_")


def _stages(
    config: RunConfig, folder: Path, settings: Mapping[str, object], resume: bool
) -> list[tuple[RunConfig, Path]]:
    """The settings and folders of a recipe and its following stages.

    Raises:
        UserError: the recipes go round in a circle, a later folder holds a run already, or its data cannot be opened.
    """
    stages = [(config, folder)]
    while stages[-1][0].then:
        following = _next_stage(*stages[-1], settings)
        place = folder.with_name(f"{folder.name}_stage{len(stages) + 1}")
        if following.name in [stage.name for stage, _ in stages]:
            raise UserError(f'the recipes named by "then" go round in a circle: {following.name} comes twice')
        if not resume and (place / "run.json").exists():
            raise UserError(f"{place} holds a run already; move it, or choose another -o (out=...)")
        wanted = following.data
        open_dataset(wanted.path, wanted.train, accept=wanted.accept, skip_bad_shards=wanted.skip_bad_shards)
        stages.append((following, place))
    return stages


def _next_stage(config: RunConfig, folder: Path, settings: Mapping[str, object]) -> RunConfig:
    """The following recipe with the data, smoothing, device and seed of the stage before, and with its best model."""
    found = recipes.load(config.then)
    found = dataclasses.replace(found, model=dataclasses.replace(found.model, smoothing=config.model.smoothing))
    own = {"data.path": config.data.path, "data.val": config.data.val, "train.init": str(folder.absolute())}
    machine = {"train.device": config.train.device, "train.seed": config.train.seed}
    given = {key: value for key, value in settings.items() if key not in ("name", "then", "train.init")}
    return configs.override(found, {**own, **machine, **given})
