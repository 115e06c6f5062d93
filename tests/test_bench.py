"""The benchmark tool: order of rounds, ratios, memory, the record, and the command on its cheapest sets."""

import ast
import importlib
import itertools
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from apart_job import counting
from PIL import Image
from test_run import cli
from torch import nn

from degrid.bench import network_cases
from degrid.bench.busy_cases import _Load
from degrid.bench.measure import (
    MIB,
    MOST_ROUNDS,
    Apart,
    Case,
    Quartiles,
    Row,
    can_sample_memory,
    measure,
    merged,
    peak_memory,
    quartiles,
    saved_activations,
    timed,
)
from degrid.bench.report import (
    Results,
    duration,
    groups,
    machine_lines,
    picture,
    write_markdown,
    write_pictures,
    write_results,
)
from degrid.bench.suite import FLAGS, SETS, machine_facts, run, thread_state, versions
from degrid.cli.bench import _table
from degrid.types import UserError


def recorded(names, log):
    """Cases that note when they run; the first is the base."""
    return [Case(name, lambda name=name: log.append(name), base=name == names[0]) for name in names]


def meter_of(**values):
    """A meter that runs the case, which gives its name, and answers with the case's next value."""
    streams = {name: iter(numbers) for name, numbers in values.items()}
    return lambda run: next(streams[run()])


def named(*names, group=""):
    return [Case(name, lambda name=name: name, group, base=name == names[0]) for name in names]


# ---- measuring ----------------------------------------------------------------------------------------------


def test_rounds_are_interleaved_and_the_warm_up_is_not_measured():
    log = []
    rows = measure(recorded("abc", log), rounds=3, warmup=2)
    assert log == list("abc") * 5
    assert [len(row.values) for row in rows] == [3, 3, 3]


def test_ratios_are_of_the_same_round_with_hand_computed_quartiles():
    meter = meter_of(a=[2.0, 4.0, 8.0, 10.0, 6.0], b=[1.0, 1.0, 16.0, 2.0, 2.0])
    base, fast = measure(named("a", "b"), rounds=5, warmup=0, meter=meter)
    assert base.ratios == (1.0,) * 5
    assert fast.ratios == (2.0, 4.0, 0.5, 5.0, 3.0)  # sorted: 0.5 2 3 4 5
    assert fast.ratio == Quartiles(2.0, 3.0, 4.0)
    assert fast.value == 2.0
    assert base.value == 6.0
    assert fast.repeats == (3.0,)


def test_the_ratio_does_not_mind_a_machine_that_gets_slower():
    drift = [1.0, 1.5, 7.0, 2.0]
    meter = meter_of(a=[3 * d for d in drift], b=[2 * d for d in drift])
    _, fast = measure(named("a", "b"), rounds=4, warmup=0, meter=meter)
    assert fast.ratio == Quartiles(1.5, 1.5, 1.5)


def test_each_group_has_its_own_base():
    cases = [*named("a", "b", group="one"), *named("c", "d", group="two")]
    rows = measure(cases, rounds=1, warmup=0, meter=meter_of(a=[6.0], b=[2.0], c=[1.0], d=[4.0]))
    assert [row.ratios for row in rows] == [(1.0,), (3.0,), (1.0,), (0.25,)]
    assert [row.group for row in rows] == ["one", "one", "two", "two"]


def test_quartiles_are_interpolated():
    assert quartiles([1.0, 2.0, 3.0, 4.0]) == Quartiles(1.75, 2.5, 3.25)
    assert quartiles([7.0]) == Quartiles(7.0, 7.0, 7.0)


def test_short_calls_are_repeated_until_the_time_is_over():
    ticks = itertools.count()  # a second passes whenever the clock is read
    log = []
    measure(recorded("ab", log), rounds=2, seconds=5, warmup=0, clock=lambda: float(next(ticks)))
    # Read once before and, from the second round on, before each further one: 1, 2, 3, 4 s are below 5.
    assert log == list("ab") * 6


def test_there_is_an_end_to_the_rounds():
    log = []
    measure(recorded("a", log), rounds=1, seconds=1, warmup=0, clock=lambda: 0.0)
    assert len(log) == MOST_ROUNDS


def test_progress_counts_the_warm_up():
    seen = []
    measure(recorded("a", []), rounds=2, warmup=1, on_round=lambda done, least: seen.append((done, least)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("cases", "rounds", "message"),
    [
        ([], 1, "at least one case"),
        ([Case("a", int)], 1, "exactly one case that is the base, got 0"),
        ([Case("a", int, "x", True), Case("b", int, "x", True)], 1, 'group "x": .* got 2'),
        ([Case("a", int, base=True)], 0, "at least 1 round"),
    ],
)
def test_what_cannot_be_measured(cases, rounds, message):
    with pytest.raises(UserError, match=message):
        measure(cases, rounds)


def test_timed_measures_the_call_and_leaves_garbage_collection_as_it_was():
    import gc

    assert timed(lambda: time.sleep(0.02)) >= 0.02
    assert gc.isenabled()
    seen = []
    timed(lambda: seen.append(gc.isenabled()))
    assert seen == [False]


def test_repeats_are_joined():
    first = measure(named("a", "b"), rounds=2, warmup=0, meter=meter_of(a=[4.0, 4.0], b=[2.0, 1.0]))
    second = measure(named("a", "b"), rounds=2, warmup=0, meter=meter_of(a=[4.0, 6.0], b=[4.0, 1.0]))
    base, fast = merged([first, second])
    assert base.name == "a"
    assert fast.values == (2.0, 1.0, 4.0, 1.0)
    assert fast.ratios == (2.0, 4.0, 1.0, 6.0)
    assert fast.repeats == (3.0, 3.5)
    assert fast.ratio.median == 3.0


# ---- memory -------------------------------------------------------------------------------------------------


def test_saved_activations_are_counted_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    x = torch.randn(2, 3, 8, 8)
    # The first convolution keeps its input, 2*3*8*8 floats; ReLU its output and the second convolution its input, which
    # are one tensor of 2*4*8*8 floats; the weights do not count.
    assert saved_activations(lambda: model(x).sum(), model) == 4 * (2 * 3 * 64 + 2 * 4 * 64)


def test_saved_activations_count_a_storage_once_and_skip_what_is_not_kept():
    x = torch.randn(5, 7, requires_grad=True)
    # x * x keeps x twice; its view shares the storage; a sum keeps nothing.
    assert saved_activations(lambda: (x * x + x.t().t() * x).sum()) == 4 * 35

    def without() -> None:
        with torch.no_grad():
            x * x

    assert saved_activations(without) == 0


def test_saved_activations_leave_out_parameters_that_are_read_through_a_view():
    layer = nn.Linear(6, 5, bias=False)  # keeps its input, and the weight for the input's gradient
    x = torch.randn(3, 6, requires_grad=True)
    assert saved_activations(lambda: (x @ layer.weight.view(5, 6).t()).sum(), layer) == 4 * 18


def test_saved_activations_of_a_whole_step_are_those_of_its_forward_pass():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    x = torch.randn(1, 3, 6, 6)
    forward = saved_activations(lambda: model(x), model)
    # The loss keeps a copy of nothing: the sum's gradient needs no values.
    assert saved_activations(lambda: model(x).sum().backward(), model) == forward == 4 * (3 * 36 + 4 * 16)


def test_inputs_of_checkpointed_modules_count():
    from torch.utils.checkpoint import checkpoint

    inner = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU())

    class Outer(nn.Module):
        def forward(self, x):
            return checkpoint(inner, x, use_reentrant=False)

    outer, x = Outer(), torch.randn(1, 2, 4, 4, requires_grad=True)
    assert saved_activations(lambda: outer(x), inner, [outer]) == 4 * 32


@pytest.mark.skipif(not can_sample_memory(), reason="the system does not tell")
def test_peak_memory_sees_an_allocation_that_is_gone_at_the_end():
    def run() -> None:
        block = torch.ones(64 * MIB, dtype=torch.uint8)
        time.sleep(0.3)  # seen even where a busy machine seldom lets the watching thread run
        del block

    assert 63 <= peak_memory(run) < 90
    assert 0 < peak_memory(lambda: None) < 8


@pytest.mark.skipif(not can_sample_memory(), reason="the system does not tell")
def test_peak_memory_lets_errors_through():
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        peak_memory(fail)


def test_peak_memory_without_proc_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("degrid.bench.measure._STATM", tmp_path / "none")
    with pytest.raises(UserError, match="only Linux"):
        peak_memory(lambda: None)


# ---- machine ------------------------------------------------------------------------------------------------


def test_thread_state_is_the_best_product_and_leaves_the_threads_as_they_were():
    before = torch.get_num_threads()
    times = iter([0.0, 2.0, 10.0, 11.0, 20.0, 24.0])  # three products of 2, 1 and 4 s
    assert thread_state([1], size=100, times=3, clock=lambda: next(times)) == {1: pytest.approx(2 * 100**3 / 1e9)}
    assert torch.get_num_threads() == before


def test_machine_facts_are_plain_and_true():
    facts = machine_facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert facts["threads"] == torch.get_num_threads()
    assert set(facts["instructions"]) <= set(FLAGS)
    assert versions(["no-such-library-of-ours"]) == {"no-such-library-of-ours": None}


# ---- results ------------------------------------------------------------------------------------------------


def some_results(threads=(100.0, 150.0), load=0.0):
    rows = measure(
        [*named("plain", "fast_1", group="$a_b$"), *named("c", group="other")],
        rounds=3,
        warmup=0,
        meter=meter_of(plain=[2.0, 4.0, 9.0], fast_1=[1.0, 1.0, 3.0], c=[1.0, 1.0, 1.0]),
    )
    state = {
        "before": {"load": load, "threads": {"1": 100.0, "2": 180.0}},
        "after": {"load": None, "threads": {"1": threads[0], "2": threads[1]}},
    }
    return Results(machine_facts(), state, {"rounds": 3}, {"own:set": rows})


def test_results_as_json(tmp_path):
    results = some_results()
    write_results(tmp_path / "bench.json", results)
    record = json.loads((tmp_path / "bench.json").read_text())
    assert (record["format"], record["settings"]) == ("degrid bench 1", {"rounds": 3})
    assert (record["machine"], record["state"]) == (results.machine, results.state)
    fast = record["sets"]["own:set"][1]
    assert fast["ratio"] == {"low": 2.5, "median": 3.0, "high": 3.5}  # of 2, 4, 3
    assert fast["median"] == 1.0
    assert (fast["case"], fast["values"], fast["ratios"]) == ("fast_1", [1.0, 1.0, 3.0], [2.0, 4.0, 3.0])


def rendered(rows):
    from rich.console import Console

    console = Console(width=140)
    with console.capture() as capture:
        console.print(_table(rows[0].group, rows))
    return capture.get()


def test_tables_have_the_ratio_first():
    first, second = (rendered(rows) for rows in groups(some_results().sets["own:set"]).values())
    line = next(line for line in first.splitlines() if "fast_1" in line)
    assert line.split() == ["fast_1", "3.00x", "2.50..3.50", "-67", "%", "1", "s", "1"]
    assert "other" in second
    assert "repeats" not in first


def test_tables_show_repeats_notes_and_memory():
    row = Row("g", "a", False, "MiB", 1, {"saved MiB": 2.5}, (4.0, 4.0), (2.0, 2.0), (1.9, 2.1))
    text = rendered([row])
    assert "times less" in text
    assert "1.90..2.10" in text
    assert "per second" not in text
    assert next(line for line in text.splitlines() if "2.00x" in line).split()[-2:] == ["4.0", "2.5"]


def test_markdown_has_the_same_cells(tmp_path):
    write_markdown(tmp_path / "bench.md", some_results())
    text = (tmp_path / "bench.md").read_text()
    assert "| fast_1 | 3.00x | 2.50..3.50 | -67 % | 1 s | 1 |" in text
    assert "100 GFLOP/s with 1, 180 GFLOP/s with 2 threads" in text


@pytest.mark.parametrize(("seconds", "text"), [(1.234, "1.23 s"), (0.0123, "12.3 ms"), (4.56e-5, "45.6 us")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_busy_or_changing_machine_is_named():
    quiet = "\n".join(machine_lines(some_results(threads=(100.0, 180.0))))
    assert "note:" not in quiet
    assert "100 GFLOP/s with 1, 180 GFLOP/s with 2 threads" in quiet
    assert "changed by 30 %" in "\n".join(machine_lines(some_results(threads=(130.0, 180.0))))
    assert "other work was running" in "\n".join(machine_lines(some_results((100.0, 180.0), load=2.0)))


def test_pictures_show_the_ratios(tmp_path):
    results = some_results()
    figure = picture("own:set", results.sets["own:set"])
    upper, lower = figure.axes
    assert [bar.get_width() for bar in upper.patches] == [1.0, 3.0]
    assert [label.get_text() for label in upper.get_yticklabels()] == ["plain", "fast_1"]
    assert upper.get_xlim() == lower.get_xlim()
    assert upper.get_xlim()[1] > 3.5
    (file,) = write_pictures(tmp_path, results)
    with Image.open(file) as opened:
        assert opened.size[0] > 800


# ---- command ------------------------------------------------------------------------------------------------


def test_the_command_measures_and_writes(tmp_path):
    code, text = cli("bench", "post", "--quick", "--repeats", 2, "--rounds", 1, "-o", tmp_path / "out")
    assert code == 0, text
    files = f"{tmp_path / 'out/bench.md'}, {tmp_path / 'out/post.png'}"
    assert text.splitlines()[-1] == f"results: {tmp_path / 'out/bench.json'}; tables and pictures: {files}"
    assert "| degrid: ConfusionMatrix |" in (tmp_path / "out/bench.md").read_text()
    results = json.loads((tmp_path / "out/bench.json").read_text())
    assert results["settings"]["sets"] == ["post"]
    assert set(results["state"]) == {"before", "after"}
    rows = results["sets"]["post"]
    assert [row["case"] for row in rows if row["base"]] == [
        "interpolate and argmax, NCHW",
        "numpy bincount, masked",
    ]
    assert all(len(row["repeats"]) == 2 and len(row["values"]) == 2 for row in rows)
    assert (tmp_path / "out/post.png").stat().st_size > 1000


def test_the_library_measures_as_the_command_does(tmp_path):
    threads, seen = torch.get_num_threads(), []
    results, files = run(["post"], tmp_path, quick=True, rounds=1, image=(50, 60), threads=1, progress=seen.append)
    assert torch.get_num_threads() == threads
    assert files == [tmp_path / "bench.json", tmp_path / "bench.md", tmp_path / "post.png"]
    assert all(file.exists() for file in files)
    assert (results.machine["threads"], results.settings["image"]) == (1, "50x60")
    assert [row.name for row in results.sets["post"]][-1] == "degrid: ConfusionMatrix"
    assert [now.done for now in seen] == sorted(now.done for now in seen)
    assert (seen[-1].done, seen[-1].status) == (seen[-1].total, "post: confusion matrix")


def test_an_unknown_set_is_refused_and_the_known_ones_are_named(tmp_path):
    code, text = cli("bench", "network", "-o", tmp_path / "out")
    assert code == 2
    assert 'unknown benchmark set "network"' in text
    assert 'Did you mean "networks"' in text
    assert all(name in text for name in SETS)
    assert not (tmp_path / "out").exists()


def test_a_set_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "my_sets.py").write_text(
        "from degrid.bench.measure import Case\n"
        "from degrid.bench.suite import Block\n"
        "def mine(scope):\n"
        "    return [Block('sums', 1, lambda: [Case('a', lambda: sum(range(9)), 'sums', True)])]\n"
    )
    monkeypatch.chdir(tmp_path)
    code, text = cli("bench", "my_sets:mine", "--quick", "--rounds", 1, "-o", "out")
    assert code == 0, text
    assert (tmp_path / "out/my_sets.mine.png").exists()


@pytest.mark.parametrize("image", ["none.jpg", "0x7"])
def test_pictures_and_sizes_that_are_none(tmp_path, image):
    code, text = cli("bench", "post", "--image", image, "-o", tmp_path / "out")
    assert code == 2
    assert image in text


# ---- cases --------------------------------------------------------------------------------------------------


def test_the_ways_to_post_process_agree():
    from degrid.bench.part_cases import _confusion_cases, interpolate_argmax, smooth_logits
    from degrid.kernels.upsample_argmax import upsample_argmax

    logits = smooth_logits(5, 13, 13)
    expected = interpolate_argmax(logits, (97, 97))
    assert len(expected.unique()) > 2
    assert (upsample_argmax(logits, (97, 97)) == expected).float().mean() > 0.9999
    by_hand, ours = _confusion_cases((97, 97))
    counts = by_hand.run()
    assert 0 < counts.trace() < counts.sum() < 97 * 97
    assert (ours.run() == counts).all()


def test_both_loaders_make_crops_of_the_same_photos(tmp_path):
    import numpy as np

    from degrid.bench.part_cases import resize_then_crop, write_photos
    from degrid.data import open_dataset

    files = write_photos(tmp_path / "train", 2)
    write_photos(tmp_path / "val", 1, 2)
    dataset = open_dataset(tmp_path, "train")
    assert len(dataset) == 2
    assert dataset[0].image.shape == (3, 375, 500)
    image, label = resize_then_crop(*files[0], 97, np.random.default_rng(0))
    assert image.shape == (3, 97, 97)
    assert label.shape == (97, 97)
    assert set(label.unique().tolist()) <= set(dataset[0].label.unique().tolist()) | {255}


@pytest.mark.slow
def test_the_ways_through_a_network_agree():
    from degrid.bench.network_cases import deeplabv3_resnet50, inference_ways, same_ids
    from degrid.data.synthetic import scene

    torch.manual_seed(0)
    ways = inference_ways(deeplabv3_resnet50(), scene((97, 97))[0])
    wanted = ways["eager, NCHW"]()
    assert len(wanted.unique()) > 1
    agreement = {name: same_ids(way(), wanted) for name, way in ways.items()}
    assert agreement["eager, NCHW"] == 100
    assert all(value > 99.8 for name, value in agreement.items() if "bfloat16" not in name), agreement
    assert all(value > 90 for value in agreement.values()), agreement


def test_jobs_run_in_processes_of_their_own(tmp_path):
    apart = Apart(counting, str(tmp_path / "x"))
    assert apart.notes == {"a": 7}
    for number in (1, 2):
        apart()
        process, count = map(int, (tmp_path / "x.calls").read_text().split())
        assert process != os.getpid()
        assert count == number


@pytest.mark.skipif(sys.platform != "linux", reason="processes are seen in /proc")
def test_a_load_is_busy_until_it_is_dropped():
    def children():
        return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())

    before, load = children(), _Load(2)
    started = children() - before
    assert len(started) == 2
    assert load.beside(lambda: 5) is None
    assert children() - before == started
    del load
    assert not children() - before


@pytest.mark.long
def test_every_set_runs(tmp_path):
    names = [name for name in SETS if name != "memory" or can_sample_memory()]
    code, text = cli("bench", *names, "--quick", "--rounds", 1, "-o", tmp_path)
    assert code == 0, text
    assert list(json.loads((tmp_path / "bench.json").read_text())["sets"]) == names


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py")), ids=lambda f: f.name)
def test_scripts_import_names_that_exist(file):
    """Some of them need libraries that are not installed here, so they are not run."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("degrid"):
            assert {alias.name for alias in node.names} <= set(dir(importlib.import_module(node.module)))


def test_the_share_of_steps_spent_waiting(monkeypatch):
    clock = SimpleNamespace(now=0)

    def wait(seconds):
        clock.now += seconds

    monkeypatch.setattr(network_cases, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(network_cases, "train_step", lambda *_: wait(1))
    slow = (wait(3) for _ in itertools.count())
    assert network_cases._fed_steps(None, None, slow) == 3 / 4
    assert network_cases._fed_steps(None, None, itertools.repeat(None)) == 0
