"""The benchmark's sides compute the same thing, and its commands run; what they measure is not tested."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny import TinyBackbone, save_checkpoint_of_scenes

from benchmarks import competing_classes, jax_side, more_data, new_classes, problem, runtimes, turns
from benchmarks.problem import Problem
from mtl_jax import config as config_lib
from mtl_jax import tasks
from mtl_jax.data import pixel_labels
from mtl_jax.errors import UserError
from mtl_jax.models import multi_task
from mtl_jax.runtime import allocator

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import benchmark

SMALL = Problem("jax", "step", batch_size=2, image_size=64)


@pytest.mark.slow
def test_a_bfloat16_step_stays_within_2_percent_of_float32_s_loss(monkeypatch):
    small_networks(monkeypatch, "plain_cnn")
    actual, expected = (
        jax_side.build(dataclasses.replace(SMALL, dtype=dtype)).compute()["all/loss"]
        for dtype in ("bfloat16", "float32")
    )
    assert actual != expected
    np.testing.assert_allclose(actual, expected, rtol=0.02)


def test_the_torch_peer_has_the_same_parameters_outputs_and_joint_loss():
    torch = pytest.importorskip("torch", reason="the peer needs torch: pip install -e '.[oracle]'")
    from benchmarks import torch_losses, torch_peer

    records = tasks.build(problem.task_settings(SMALL))
    model = multi_task.build({}, records)
    variables = multi_task.init_variables(model, key=jax.random.key(0))
    image, labels = problem.images(SMALL), problem.labels(SMALL)
    labels["det"]["valid"][:, 1:] = False  # where boxes compete for cells, ties may fall either way

    @jax.jit
    def answers(variables, image, labels):
        raw = multi_task.eval_raw(model, variables, image, tasks=tuple(records))[0]
        return raw, sum(record.loss(raw[name], labels[name], (64, 64))[0] for name, record in records.items())

    raw, expected = answers(variables, jnp.asarray(image), jax.tree.map(jnp.asarray, labels))

    network = torch_peer.Network().eval()
    torch_peer.load_jax_params(network, variables["params"])
    sizes = multi_task.parameter_count(variables["params"])
    assert sum(parameter.numel() for parameter in network.parameters()) == sum(sizes.values())
    with torch.inference_mode():
        outputs = network(torch.from_numpy(image).permute(0, 3, 1, 2))
        inputs = {
            task: {name: torch.from_numpy(value) for name, value in label.items()} for task, label in labels.items()
        }
        actual = torch_losses.joint_loss(outputs, inputs, 64)
    for ours, theirs in zip(
        (raw[name] for name in records), (outputs[0].permute(0, 2, 3, 1), *outputs[1:]), strict=True
    ):
        np.testing.assert_allclose(theirs.numpy(), ours, atol=1e-4)
    np.testing.assert_allclose(float(actual), float(expected), rtol=1e-3)


@pytest.mark.slow
def test_a_side_in_its_own_process_is_timed_and_one_that_fails_says_why():
    (timing,) = turns.run([dataclasses.replace(SMALL, what="infer", classifiers=1)], repeats=2)
    assert len(timing.seconds) == 2
    assert timing.record()["peak_mb"] > 0
    with pytest.raises(UserError, match=r"side jax of the benchmark ended early: .*multiple"):
        turns.run([dataclasses.replace(SMALL, image_size=33)], repeats=1)


def test_a_comparison_has_the_peers_as_they_come_and_with_memory_kept(monkeypatch):
    from benchmarks import commands

    took = {("jax", True): 0.2, ("torch", False): 0.5, ("torch_compile", False): 0.4, ("torch", True): 0.25}

    def run(problems, *, repeats):
        seconds = (took.get((entry.side, entry.keeps_memory), 1.0) for entry in problems)
        return [turns.Timing(entry, 1.0, (second,), 1.0) for entry, second in zip(problems, seconds, strict=True)]

    monkeypatch.setattr(turns, "run", run)
    first, *peers = commands.step(commands.Options(peer="torch"))
    assert (first["ratio_of_medians"], first["ratio_of_medians_memory_kept"]) == (
        pytest.approx(0.5),
        pytest.approx(0.8),
    )
    assert [(row["side"], row["memory_kept"]) for row in peers[::2]] == [("torch", False), ("torch", True)]


def test_the_allocator_s_settings_reach_only_the_sides_that_ask_for_them(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", allocator.TUNABLES)
    assert "GLIBC_TUNABLES" not in turns.environment_of(dataclasses.replace(SMALL, side="torch"), None)
    assert turns.environment_of(SMALL, None)["GLIBC_TUNABLES"] == allocator.TUNABLES
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=0")  # the user's own
    assert (
        turns.environment_of(dataclasses.replace(SMALL, side="torch"), None)["GLIBC_TUNABLES"] == "glibc.malloc.check=0"
    )


def test_the_command_line_prints_a_table_and_writes_json(monkeypatch, tmp_path, capsys):
    from benchmarks import commands

    monkeypatch.setitem(commands.COMMANDS, "step", lambda options: [{"side": "jax", "median_ms": 1.5}])
    assert benchmark.main(["step", "--json", str(tmp_path / "out.json")]) == 0
    assert "1.5" in capsys.readouterr().out
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["rows"] == [{"side": "jax", "median_ms": 1.5}]
    assert record["machine"]["cores"]
    assert benchmark.main(["step", "--json", str(tmp_path / "nowhere" / "out.json")]) == 2


def small_networks(monkeypatch, backbone="tiny"):
    """Lets the benchmarks build networks that compile in seconds."""
    monkeypatch.setitem(multi_task.BACKBONES, "tiny", TinyBackbone)
    small = {"backbone": backbone, "width_multiplier": 0.25, "neck_channels": 8, "head_channels": 8}
    small["head_layers"] = 1
    build = multi_task.build
    monkeypatch.setattr(multi_task, "build", lambda config, records: build({**config, **small}, records))


@pytest.mark.slow
def test_balancing_methods_are_set_beside_the_sum(monkeypatch):
    from benchmarks import balance_costs, commands

    result = balance_costs.settings(SMALL, ("sum", "moco", "pcgrad"))
    assert result[0][2] == ("sum", "moco", "pcgrad")
    assert result[2][2] == result[-1][2] == ("sum", "pcgrad")
    two = [("two tasks", dataclasses.replace(SMALL, image_size=32, classifiers=2), ("sum", "pcgrad"))]
    monkeypatch.setattr(balance_costs, "settings", lambda plain, methods: two)
    small_networks(monkeypatch)
    balance_costs._shared_params.cache_clear()
    rows = commands.balance(commands.Options(repeats=1, methods="pcgrad"))
    assert [row["balance"] for row in rows] == ["sum", "pcgrad"]
    assert rows[0]["ratio_to_sum"] == rows[0]["memory_ratio"] == 1.0
    assert all(row["update_ms"] > 0 and row["memory_mb"] > 0.1 for row in rows)
    balance_costs._shared_params.cache_clear()
    with pytest.raises(UserError, match=r"--methods: expected some of sum.*, found pc_grad"):
        commands.balance(commands.Options(methods="pc_grad"))


def test_a_body_with_heads_holds_fewer_parameters_than_as_many_networks(monkeypatch):
    from benchmarks import hydra

    monkeypatch.setattr(hydra, "HEADS", (1, 2))
    small_networks(monkeypatch)
    single, two = hydra.measure(image_size=64, repeats=1)
    assert single["body_params"] == single["stacked_params"]
    assert two["stacked_params"] == 2 * single["body_params"] > two["body_params"]
    assert two["body_memory_mb"] < two["stacked_memory_mb"]
    assert single["times_one_head"] == 1


def test_every_backbone_is_counted_and_timed(monkeypatch):
    from benchmarks import commands

    requested = []

    def run(problems, *, repeats):
        requested.extend(problems)
        return [turns.Timing(entry, 1.0, (0.002, 0.004, 0.003), 1.0) for entry in problems]

    monkeypatch.setattr(turns, "run", run)
    backbones = {name: multi_task.BACKBONES[name] for name in ("yolov8n", "plain_cnn")}
    monkeypatch.setattr(multi_task, "BACKBONES", backbones)
    first, second = commands.backbones(commands.Options(image_size=128))
    assert (first["backbone"], first["params"], second["params"]) == ("yolov8n", 1_272_656, 310_160)
    assert (first["infer_ms"], first["step_min_ms"]) == (3, 2)
    assert [(entry.what, entry.backbone, entry.batch_size, entry.image_size) for entry in requested[1:3]] == [
        ("infer", "plain_cnn", 1, 128),
        ("step", "yolov8n", 8, 64),
    ]


def test_sharing_is_timed_counted_and_set_against_what_runs_reached(monkeypatch, tmp_path):
    from benchmarks import commands, sharing
    from mtl_jax import config as config_lib
    from mtl_jax import experiment

    config = config_lib.base()
    config.model.update({"backbone": "plain_cnn", "width_multiplier": 0.25, "neck_channels": 8, "head_channels": 8})
    for name in ("one", "two"):
        config.tasks[name] = {"kind": "classification", "classes": ("a", "b")}

    def build(data_root, variant, **changes):
        settings = config.to_dict()
        return experiment.build({**settings, "model": settings["model"] | changes}, data_root=data_root)

    milliseconds = {("one", "two"): 3.0, ("one",): 1.0, ("two",): 2.0}
    requested = []

    def latency_ms(predict, variables, tasks, *, image_size, repeats):
        requested.append((tasks, image_size))
        return milliseconds[tasks]

    monkeypatch.setattr(sharing.evaluate, "latency_ms", latency_ms)
    monkeypatch.setattr(sharing.flagship, "build", build)
    monkeypatch.setattr(sharing, "NETWORKS", {"plain": ("plain", {}), "apart": ("plain", {"sharing": "independent"})})
    for seed, drop in enumerate((2.0, 6.0)):
        entry = {"metric": "top1", "final": 0.5 + seed / 10, "drop_percent": drop, "higher_is_better": True}
        tree = {"passed": True, "tasks": {"one": entry}, "budgets": {}, "stages": []}
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / "contract.json").write_text(json.dumps(tree))
    entry = {"metric": "top1", "final": 0.9, "drop_percent": 0.0, "higher_is_better": True}
    (tmp_path / "single").mkdir()
    tree = {"passed": True, "tasks": {"two": entry}, "budgets": {}, "stages": []}
    (tmp_path / "single" / "contract.json").write_text(json.dumps(tree))
    runs = f"plain={tmp_path}/0,plain={tmp_path}/1,apart={tmp_path}/0,apart={tmp_path}/single"
    options = commands.Options(image_size=64, repeats=1, runs=runs, svg=tmp_path / "frontier.svg")
    plain, apart = commands.sharing(options)
    assert plain["params"] < apart["params"]
    assert plain["shared_percent"] > 90
    assert apart["shared_percent"] == 0
    assert (plain["all_ms"], plain["two_ms"], plain["ratio"]) == (3.0, 2.0, 1.5)
    assert requested == [(names, 64) for names in milliseconds] * 4  # of both networks, in a turn to compile and one
    assert (plain["one_top1"], plain["largest_drop_percent"]) == pytest.approx((0.55, 4.0))
    assert (apart["one_top1"], apart["two_top1"], apart["largest_drop_percent"]) == (0.5, 0.9, 2.0)
    assert "largest drop percent" in (tmp_path / "frontier.svg").read_text()
    with pytest.raises(UserError, match=r"no contract\.json in nowhere"):
        commands.sharing(dataclasses.replace(options, runs="plain=nowhere"))
    with pytest.raises(UserError, match=r"--runs: expected some of plain, apart.*, found hard"):
        commands.sharing(dataclasses.replace(options, runs="hard=nowhere"))


MISSING = ("grain", "ml_collections", "pycocotools", "orbax", "cv2", "PIL", "tensorboard", "tensorboardX", "torch")
# Flax and Optax bring rich and absl for themselves, so those are kept from us alone.
BARE = f"""
import builtins, sys
sys.modules.update(dict.fromkeys({MISSING}))
found = builtins.__import__

def bare(name, globals=None, *rest, **named):
    asked_by = (globals or {{}}).get("__name__", "").partition(".")[0]
    if name.partition(".")[0] in ("rich", "absl") and asked_by in ("mtl_jax", "benchmarks", "benchmark", "__main__"):
        raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
    return found(name, globals, *rest, **named)

builtins.__import__ = bare
"""


@pytest.mark.slow
def test_the_gpu_command_runs_on_a_bare_machine_and_says_where_there_is_no_gpu(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(BARE)  # which every process of the command runs first
    root, path = Path(__file__).parents[1], tmp_path / "gpu.json"
    process = subprocess.run(
        [sys.executable, root / "scripts" / "benchmark.py", "gpu", "--quick", "--minutes", "60", "--json", path],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    rows = json.loads(path.read_text())["rows"]
    by_section = {name: [row for row in rows if row["section"] == name] for name in {row["section"] for row in rows}}
    assert set(by_section) == {"machine", "correctness", "depthwise", "step", "infer", "balance"}
    assert "no GPU is here" in by_section["machine"][0]["message"]
    assert {row["equal"] for row in by_section["correctness"]} == {"yes"}
    assert {"side": "torch", "section": "step", "message": "skipped: PyTorch is not installed"} in rows
    timed = [row for row in rows if "message" not in row and row["section"] in ("step", "infer", "balance")]
    assert all(row["min_ms"] <= row["median_ms"] <= row["max_ms"] for row in timed)
    assert [row["balance"] for row in by_section["balance"]] == ["sum", "pcgrad"]
    assert by_section["balance"][0]["ratio_to_sum"] == 1.0
    assert by_section["balance"][1]["bar"] == "<= 1.10"
    assert "## correctness" in process.stdout
    assert "| jax | float32 | 2 | 64 |" in process.stdout


def gpu_times(monkeypatch, outcomes):
    """Lets `turns.together` return, for each problem, seconds of a computation or words; returns what was asked."""
    from benchmarks import gpu

    requested = []

    def together(problems, *, repeats, seconds, environment):
        requested.append(list(problems))
        result = [outcomes(problem, alone=len(problems) == 1) for problem in problems]
        return [
            entry if isinstance(entry, str) else turns.Timing(problem, 1.0, (entry,), 1.0)
            for problem, entry in zip(problems, result, strict=True)
        ]

    facts = {"backend": "gpu", "gflop_an_image": 10.0, "tflops": {"bfloat16": 100.0, "float32": 50.0}}
    monkeypatch.setattr(gpu, "_checks", lambda *arguments, **options: facts)
    monkeypatch.setattr(gpu, "_has_torch", lambda: True)
    monkeypatch.setattr(turns, "together", together)
    return gpu, requested


def test_a_gpu_s_rows_hold_ratios_bars_and_the_share_of_its_peak(monkeypatch):
    seconds = {"jax": 0.1, "torch": 0.3, "torch_compile": 0.2}

    def outcomes(problem, *, alone):
        return seconds[problem.side] * (1.2 if problem.balance == "pcgrad" else 1.0)

    gpu, requested = gpu_times(monkeypatch, outcomes)
    written = []
    rows = gpu.measure(minutes=1.0, quick=False, on_rows=lambda rows: written.append(len(rows)))
    assert written == list(range(1, len(rows) + 1))
    first = rows[0]
    assert (first["section"], first["side"], first["dtype"], first["batch_size"]) == ("step", "jax", "bfloat16", 8)
    assert first["ratio_to_torch_compile"] == pytest.approx(0.5)
    assert (first["bar"], first["met"]) == ("<= 1.00", "yes")
    assert first["share_of_peak"] == pytest.approx(3 * 10e9 * 8 / 0.1 / 100e12)
    pcgrad = [row for row in rows if row.get("balance") == "pcgrad"]
    assert [(row["setting"], row["met"]) for row in pcgrad] == [(name, "no") for name in gpu.SETTINGS]
    assert pcgrad[0]["images_per_second"] == pytest.approx(3 * 32 / 0.12)
    assert any(problem.depthwise == "shifted" for problem in requested[0])
    assert {(row["dtype"], row["batch_size"]) for row in rows if row["section"] == "infer"} == {
        (dtype, batch) for dtype in ("bfloat16", "float32") for batch in (8, 64, 256)
    }


def test_a_side_without_memory_is_tried_alone_and_what_comes_too_late_is_one_row_s_message(monkeypatch):
    def outcomes(problem, *, alone):
        if problem.side == "torch" and problem.batch_size == 64:
            return 0.5 if alone else f"ended early: {turns.OUT_OF_MEMORY}"
        return f"ended early: {turns.OUT_OF_MEMORY}" if problem.batch_size == 256 else 0.1

    gpu, requested = gpu_times(monkeypatch, outcomes)
    rows = gpu.measure(minutes=1.0, quick=False, on_rows=lambda rows: None)
    assert next(row for row in rows if row["side"] == "torch" and row["batch_size"] == 64)["median_ms"] == 500
    assert [len(problems) for problems in requested[:2]] == [7, 1]
    large = [row for row in rows if row["batch_size"] == 256]
    assert len(large) == 12
    assert all(turns.OUT_OF_MEMORY in row["message"] for row in large)
    late = gpu.measure(minutes=0.0, quick=False, on_rows=lambda rows: None)
    assert {row["message"] for row in late} == {"left out: no time"}


def test_sides_that_are_built_together_fail_one_by_one():
    wrong = dataclasses.replace(SMALL, image_size=33)
    late, failed = turns.together([SMALL, wrong], repeats=1, seconds=0.01)
    assert late == "not done after 0 s"
    assert isinstance(failed, str)
    assert turns.cause("XLA said\nRESOURCE_EXHAUSTED: Out of memory while trying\nmore") == turns.OUT_OF_MEMORY
    assert turns.cause("Traceback\nValueError: a word\n") == "ValueError: a word"


def test_processes_share_one_cache_and_a_user_s_flags_for_xla_are_left_alone(monkeypatch):
    from benchmarks import gpu

    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert gpu._environment()["XLA_FLAGS"] == gpu.XLA_FLAGS
    from mtl_jax.runtime import compilation

    assert gpu._environment()["JAX_COMPILATION_CACHE_MAX_SIZE"] == str(compilation.MAX_BYTES)
    monkeypatch.setenv("XLA_FLAGS", "--mine")
    assert gpu._environment()["XLA_FLAGS"] == "--mine"


def test_the_file_that_torch_onnx_makes_of_the_peer_says_what_the_library_s_file_says(tmp_path):
    for package in ("torch", "onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed: files of the peer are not tested")
    from benchmarks import torch_onnx
    from mtl_jax.export import formats, network

    records = tasks.build(problem.task_settings(SMALL))
    model = multi_task.build({}, records)
    variables = multi_task.init_variables(model, key=jax.random.key(0))
    torch_onnx.write(tmp_path / "peer.onnx", variables, image_size=64, decode="none")
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    function = network.model_output_function(model, records, variables, "none")
    assert formats.write_onnx(function, tmp_path / "library.onnx", image, layout="nchw")
    pixels = np.ascontiguousarray(problem.images(SMALL).transpose(network.TO_NCHW))
    expected, outputs = (formats.open_session(str(tmp_path / name))(pixels) for name in ("peer.onnx", "library.onnx"))
    for name, value in expected.items():
        np.testing.assert_allclose(outputs[f"{name}/outputs"], value, rtol=1e-4, atol=1e-4, err_msg=name)


def test_exported_files_are_timed_in_every_runtime_that_is_installed(tmp_path, capsys):
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed: exported files are not timed")
    from mtl_jax.export import formats

    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    for name, layout in (("first", "nchw"), ("second", "nhwc")):
        formats.write_onnx(lambda x: {"y": x.mean(axis=(1, 2))}, tmp_path / f"{name}.onnx", image, layout=layout)
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(tmp_path / "photo.png")
    files = [str(tmp_path / f"{name}.onnx") for name in ("first", "second")]
    settings = ["--image_size", "32", "--batch_sizes", "1", "2", "--repeats", "1"]
    runtimes.main([*files, "--images", str(tmp_path / "photo.png"), *settings])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if ".onnx" in line]
    assert [row[1] for row in rows if "onnxruntime" in row] == ["first.onnx", "second.onnx"]
    assert all(row.count("1.00") >= 2 for row in rows if "first.onnx" in row)


def test_files_of_all_formats_are_measured_as_the_network_is(tiny_backbone, tmp_path, capsys, monkeypatch):
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed: exported files are not measured")
    from benchmarks import deployment
    from mtl_jax.cli import export

    weights = save_checkpoint_of_scenes(tmp_path / "checkpoints" / "0-all")
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(tmp_path / "photo.png")
    settings = ["--weights", str(weights), "--layout", "nchw", "--format", "stablehlo,onnx"]
    assert export.main([*settings, "--out", str(tmp_path / "files")]) == 0
    known = f"""
sys.path.append({str(Path(__file__).with_name("support"))!r})
import tiny
from mtl_jax.models import multi_task
multi_task.BACKBONES["tiny"] = tiny.TinyBackbone
"""
    monkeypatch.setitem(deployment.PROGRAMS, runtimes.NETWORK, known + deployment.PROGRAMS[runtimes.NETWORK])
    rows = deployment.measure([tmp_path / "files"], [str(tmp_path / "photo.png")], None, repeats=1)
    assert rows[0]["peak_mb"] > 10
    assert rows[0]["mb"] == pytest.approx(rows[2]["mb"], rel=0.5)
    network, *files = [{key: value for key, value in row.items() if key in ("seg", "det")} for row in rows]
    assert network["seg"] > 0
    for file, row in zip(files, rows[1:], strict=True):
        assert file == pytest.approx(network)
        assert row["mb"] == (tmp_path / row["file"]).stat().st_size / 1e6
        assert "/outputs)" in row["difference"]
        assert row["ms"] > 0
        assert row["peak_mb"] > 10
    assert {row["runtime"] for row in rows} >= {"JAX", "onnxruntime"}

    settings = ["--weights", str(weights), "--image_size", "64", "--batch_sizes", "1", "--repeats", "1"]
    files = [str(tmp_path / "files" / name) for name in ("model.stablehlo", "model.onnx")]
    capsys.readouterr()
    runtimes.main([*files, "--images", str(tmp_path / "photo.png"), *settings])
    lines = [line for line in capsys.readouterr().out.splitlines() if "JAX" in line]
    assert [line.count("1.00") for line in lines if "the network" in line] == [1]
    assert any("model.stablehlo" in line for line in lines)


def test_boxes_that_a_file_does_not_suppress_are_suppressed_as_the_network_does():
    from benchmarks import deployment

    task = tasks.build({"det": {"kind": "detection", "classes": ("a", "b")}})["det"]
    places, logits = np.random.default_rng(0).normal(size=(2, 2, 40, 7)).astype(np.float32)
    cells = jnp.concatenate([40 * jnp.abs(places[..., :4]), 3 * logits[..., 4:]], axis=-1)
    expected, undecided = jax.device_get((task.decode(cells), task.undecided.decode(cells)))
    found = deployment.suppressed(task, undecided)
    assert 0 < expected["valid"].mean() < 1
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-3, err_msg=name)


def test_sums_over_devices_are_counted_in_a_program_and_their_time_grows_with_devices():
    from benchmarks import at_scale

    program = """
  %all-reduce.1 = f32[3,4]{1,0} all-reduce(f32[3,4]{1,0} %x), replica_groups={{0,1}}, to_apply=%add
  %all-reduce.2 = (f32[2]{0}, s32[]) all-reduce(f32[2]{0} %y, s32[] %z), to_apply=%add
  %reduce = f32[] reduce(f32[9]{0} %w, f32[] %zero), to_apply=%add
"""
    assert at_scale.all_reduces(program) == (2, 4 * (12 + 2 + 1))
    two = at_scale.exchange_seconds(2, 3, 1000, bytes_per_second=1000.0, latency=0.5)
    assert two == pytest.approx(1.0 + 2 * 3 * 0.5)
    inputs = {"batch_size": 8, "bytes_per_second": 1e9, "latency": 1e-5, "learning_rate": 1e-3}
    single, many = at_scale.rows(0.1, 10, 1_000_000, devices=(1, 64), **inputs)
    assert (single["efficiency"], single["images_per_second"]) == (1, pytest.approx(80))
    assert many["learning_rate"] == pytest.approx(8e-3)
    assert many["images_per_second_of_a_host"] == pytest.approx(many["images_per_second"] / 8)
    assert many["efficiency"] < 1


def test_the_share_of_new_classes_is_that_of_the_means_within_an_interval():
    def row(later, together):
        return {"more": {"new": later}, "together": {"new": together}}

    assert new_classes.share([row(0.09, 0.1), row(0.18, 0.2)], "more") == pytest.approx((0.9, 0.9, 0.9))
    share, low, high = new_classes.share([row(0.05, 0.1), row(0.2, 0.2)], "more")
    assert (share, low, high) == pytest.approx((0.25 / 0.3, 0.5, 1.0))


def test_images_with_boxes_come_in_two_halves_that_share_the_validation(tmp_path):
    annotations = tmp_path / "data" / more_data.COCO / "annotations"
    annotations.mkdir(parents=True)
    for split, count in (("train", 6), ("val", 2)):
        coco = {
            "images": [{"id": number} for number in range(count)],
            "annotations": [{"image_id": number} for number in (0, *range(count))],
            "categories": [{"id": 1, "name": "cat"}],
        }
        (annotations / f"instances_{split}.json").write_text(json.dumps(coco))
    root = more_data.divide(tmp_path / "runs", tmp_path / "data", seed=0)
    ids, boxes = [], 0
    for part in (more_data.FIRST, more_data.MORE):
        coco = json.loads((root / part / "annotations" / "instances_train.json").read_text())
        chosen = [image["id"] for image in coco["images"]]
        assert len(chosen) == 3
        assert {box["image_id"] for box in coco["annotations"]} == {*chosen}
        assert len(json.loads((root / part / "annotations" / "instances_val.json").read_text())["images"]) == 2
        ids, boxes = [*ids, *chosen], boxes + len(coco["annotations"])
    assert (sorted(ids), boxes) == ([*range(6)], 7)
    assert (root / more_data.COCO).is_symlink()


def test_competing_classes_come_in_two_parts(tmp_path):
    wnids = [f"n{number}" for number in range(10)]
    for split in ("train", "val"):
        for wnid in wnids:
            (tmp_path / "data" / competing_classes.IMAGENETTE / split / wnid).mkdir(parents=True)
    names = tmp_path / "data" / competing_classes.IMAGENETTE / competing_classes.NAMES
    names.write_text(json.dumps({wnid: f"class {wnid}" for wnid in wnids}))
    root = competing_classes.link_imagenette(tmp_path / "runs", tmp_path / "data")
    pages = [functools.partial(competing_classes.imagenette_page, root), competing_classes.voc_page]
    pages += [functools.partial(competing_classes.digits_page, kind) for kind in ("classification", "segmentation")]
    for page in pages:
        classes = {}
        for part in ("first", competing_classes.LATER, "together"):
            settings = config_lib.read_settings(page(part))
            assert settings.order == (part,)
            classes[part] = tuple(settings.tasks[competing_classes.TASK]["classes"])
        assert classes["first"] + classes[competing_classes.LATER] == classes["together"]
    assert (root / "first" / "val" / "n6").is_dir()
    assert not (root / "first" / "val" / "n7").exists()


def test_masks_of_a_part_show_the_classes_of_the_others_as_background(tmp_path):
    masks = tmp_path / "data" / competing_classes.VOC / "SegmentationClass"
    masks.mkdir(parents=True)
    pixel_labels.write_png(masks / "one.png", np.array([[0, 1, 15, 16, 20, 255]], np.uint8))
    root = competing_classes.divide_voc(tmp_path / "runs", tmp_path / "data")
    expected = {"first": [0, 1, 15, 0, 0, 255], "later": [0, 0, 0, 1, 5, 255], "together": [0, 1, 15, 16, 20, 255]}
    for part, values in expected.items():
        mask = pixel_labels.mask_values(root / part / "SegmentationClass" / "one.png", name="one")
        np.testing.assert_array_equal(mask, [values])
