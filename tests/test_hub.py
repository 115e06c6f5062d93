"""Models are given away and fetched through a stand-in for the hub: folders on this computer."""

import json
import shutil
from pathlib import Path

import httpx
import huggingface_hub
import pytest
import torch
from huggingface_hub import errors

import degrid
from degrid.config import ModelConfig
from degrid.networks import build_model
from degrid.types import LabelSpace, UserError
from degrid.verbs import hub
from degrid.verbs.model_card import CardText


class StandIn:
    """What degrid asks of huggingface_hub: a repository is a folder below `place`."""

    place: Path

    def __init__(self, **_):
        pass

    def create_repo(self, name, *, private, exist_ok):
        assert exist_ok
        (self.place / name).mkdir(parents=True, exist_ok=True)
        return f"https://hub.example/{name}"

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, revision, commit_message):
        for name in allow_patterns:
            if Path(folder_path, name).exists():
                shutil.copy(Path(folder_path, name), self.place / repo_id / name)


def answer(kind, status):
    return kind("said", response=httpx.Response(status, request=httpx.Request("GET", "https://hub.example")))


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    monkeypatch.setattr(StandIn, "place", tmp_path / "hub", raising=False)

    def snapshot_download(name, *, revision, allow_patterns):
        folder = StandIn.place / name
        if not folder.is_dir():
            raise answer(errors.RepositoryNotFoundError, 404)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "HfApi", StandIn)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return StandIn.place


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    config = ModelConfig(encoder="timm:test_resnet", pretrained=False, channels=8, output_stride=32)
    return build_model(config, LabelSpace(("road", "sky"), ((128, 64, 128), (70, 130, 180)))).eval()


@pytest.fixture
def folder(network, tmp_path):
    degrid.save(network, tmp_path / "model")
    return tmp_path / "model"


def logits(network):
    with torch.no_grad():
        return network(torch.arange(3 * 64 * 64.0).reshape(1, 3, 64, 64) % 256)


def test_what_is_pushed_is_what_is_pulled(folder, network, stand_in, tmp_path):
    page = degrid.push_to_hub(folder, "me/roads", text=CardText("roads", "apache-2.0", "## Limits\n\nMany."))
    assert page == "https://hub.example/me/roads"
    pulled = hub.pull("me/roads@main", tmp_path / "pulled")
    for found in (degrid.load(pulled), degrid.from_pretrained("me/roads"), degrid.load("hf:me/roads")):
        assert torch.equal(logits(found), logits(network))
    card = (pulled / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: degrid\n")
    assert "license: apache-2.0" in card
    assert "## Limits\n\nMany." in card
    assert "Classes: road, sky." in card
    assert "degrid predict hf:me/roads" in card


def test_half_rounds_filters_to_float16_and_nothing_else(network, tmp_path):
    degrid.save(network, tmp_path / "half", half=True)
    found = degrid.load(tmp_path / "half").state_dict()
    for name, value in network.state_dict().items():
        right = value.half().float() if value.ndim > 1 else value
        assert torch.equal(found[name], right), name


def test_a_packed_folder_is_sent_as_it_is(folder, stand_in, tmp_path):
    packed = hub.pack(folder, tmp_path / "packed", half=True)
    degrid.push_to_hub(packed, "me/packed")
    for file in packed.iterdir():
        assert (stand_in / "me/packed" / file.name).read_bytes() == file.read_bytes()
    with pytest.raises(UserError, match="packed already"):
        degrid.push_to_hub(packed, "me/packed", half=True)
    with pytest.raises(UserError, match="holds 4 files already"):
        hub.pack(folder, packed)


@pytest.mark.parametrize(
    ("key", "value"),
    [("encoder", "os:system"), ("network", "my:head"), ("smoothing", {"operator": "my:Operator"})],
)
def test_models_that_name_code_are_refused(folder, stand_in, tmp_path, key, value):
    degrid.push_to_hub(folder, "me/roads")
    file = stand_in / "me/roads/config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["model"][key] = {**config["model"][key], **value} if isinstance(value, dict) else value
    file.write_text(json.dumps(config), encoding="utf-8")
    for take in (lambda: degrid.load("hf:me/roads"), lambda: hub.pull("me/roads", tmp_path / "pulled")):
        with pytest.raises(UserError, match="names code outside degrid"):
            take()
    assert not (tmp_path / "pulled").exists()


def test_other_repositories_are_refused(stand_in):
    (stand_in / "me/text").mkdir(parents=True)
    with pytest.raises(UserError, match=r"not a degrid model: it lacks config\.json"):
        degrid.load("hf:me/text")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (answer(errors.RepositoryNotFoundError, 404), "no such repository, or it is private"),
        (answer(errors.RevisionNotFoundError, 404), "no such revision"),
        (answer(errors.GatedRepoError, 403), "accept the terms"),
        (answer(errors.HfHubHTTPError, 403), "your token does not allow it"),
        (answer(errors.HfHubHTTPError, 401), "log in by"),
        (answer(errors.HfHubHTTPError, 503), "answers 503; try again later"),
        (errors.LocalTokenNotFoundError("none"), "log in by"),
        (errors.LocalEntryNotFoundError("not here"), "no connection, and it was not fetched before"),
        (httpx.ConnectError("refused"), "there is no connection"),
    ],
)
def test_what_the_hub_says_is_said_in_words(monkeypatch, error, said):
    def snapshot_download(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(UserError, match=said) as caught:
        degrid.load("hf:me/roads")
    assert "me/roads" in str(caught.value)


@pytest.mark.parametrize("name", ["roads", "me/roads/deep", "me/roads@", "me / roads"])
def test_names_of_another_form(name):
    with pytest.raises(UserError, match="expected a model on the hub as OWNER/NAME"):
        hub.pull(name)
