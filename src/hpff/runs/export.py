"""A finished run as a folder that a model hub, or another person, can take as it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

import hpff
from hpff import models
from hpff.errors import UserError
from hpff.runs import digests
from hpff.runs.atomic_files import scratch_beside, write_through
from hpff.runs.finished_run import FinishedRun
from hpff.runs.markdown import escaped
from hpff.runs.run_directory import RunDirectory

_LOAD = 'model.load_state_dict(safetensors.torch.load_file("model.safetensors"))'


def export(run: FinishedRun, folder: Path) -> None:
    """Write weights, recipe, metrics, report, the model's facts and a card into a new folder.

    `model.safetensors` is the plain backbone. The folder appears whole or not at all. Raises
    UserError if it exists, if it cannot be written, and if a file of the run is not sound.
    """
    run.model()  # Refuses weights that do not fit.
    try:
        if os.path.lexists(folder):
            raise UserError(f"{folder}: exists already; choose another folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with scratch_beside(folder) as scratch:
            new = scratch / folder.name
            new.mkdir()
            for name, content in _contents(run):
                write_through(new / name, content)
            new.rename(folder)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot write this folder ({error.strerror or error}); make room or choose "
            "another"
        ) from error


def _contents(run: FinishedRun) -> Iterator[tuple[str, bytes]]:
    """Each file's name and content; those of the run are the very bytes that its report means."""
    source = RunDirectory(run.path)
    for file in (source.recipe, source.weights, source.metrics, source.table):
        yield file.name, source.read_whole(file)
    for file in (source.report, source.broken):
        if file.exists():
            yield file.name, file.read_bytes()
    yield "config.json", digests.json_text(_config(run))
    yield "README.md", card(run).encode()


def _config(run: FinishedRun) -> dict[str, Any]:
    facts = run.facts
    library, name = models.resolve(run.recipe.model.name)
    return {
        "library": library,
        "model": name,
        "settings": dict(run.recipe.model.settings),
        "num_classes": len(facts.class_names),
        "class_names": list(facts.class_names),
        "image_shape": list(facts.image_shape),
        "mean": list(facts.mean),
        "std": list(facts.std),
        "hpff": hpff.__version__,
    }


def card(run: FinishedRun) -> str:
    """The model card: Markdown under the YAML header that model hubs read."""
    recipe, report, facts = run.recipe, run.report, run.facts
    dataset = facts.name.rpartition(":")[2].rstrip("/").rpartition("/")[2]
    header = yaml.safe_dump(_header(run, dataset), sort_keys=False)
    levels = _levels(run)
    memory = report["peak_memory_bytes"] / 2**30
    step = f"a training step\ntook {memory:.2f} GiB at batch {recipe.batch_size}"
    mean, std = _numbers(facts.mean), _numbers(facts.std)
    machine = escaped(", ".join(f"{key} {value}" for key, value in report["machine"].items()))
    size = "×".join(map(str, facts.image_shape))
    code = _code(run)
    fence = "```" if "```" not in code else "~" * (3 + code.count("~"))
    return f"""---
{header}---
# {escaped(recipe.model.name)} on {escaped(dataset)}, trained by {levels}

{_result(run)}. Trained with [hpff](https://arxiv.org/abs/2407.05638) {hpff.__version__}; {step}.

`model.safetensors` holds the plain backbone, without anything of local learning:

{fence}python
{code}
{fence}

{_images(run, size)}, in 0..1, less the mean {mean}, divided by {std}.
Classes, in order: {", ".join(map(escaped, facts.class_names))}.

- `recipe.yaml`: every setting; `hpff train recipe.yaml` trains it again.
- `metrics.csv`, `metrics.jsonl`, `report.json`: what came out, epoch by epoch and in the end.
- `config.json`: the facts above, for programs.

Machine: {machine}.
"""


def _result(run: FinishedRun) -> str:
    """What came out, in a sentence without its full stop."""
    report, accuracy = run.report, 100 - run.report["test_error_percent"]
    tested = "test images" if run.recipe.held_out is None else "held-out training images"
    epochs = report["epochs"]
    if run.is_dense:
        iterations = run.recipe.iterations
        after = f"{epochs} epochs" if iterations is None else f"{iterations} iterations"
        return (
            f"mIoU {report['test_miou_percent']:.2f} %, and {accuracy:.2f} % of pixels right, on "
            f"{report['test_images']} whole {tested}\nat a single scale, after {after}"
        )
    return (
        f"{accuracy:.2f} % of {report['test_images']} {tested} right after the last of "
        f"{epochs}\nepochs"
    )


def _images(run: FinishedRun, size: str) -> str:
    if run.is_dense:
        return f"The model takes images of any size (it was trained on crops of {size})"
    return f"Images are {size}"


def _header(run: FinishedRun, dataset: str) -> dict[str, Any]:
    task, metric = "image-classification", "accuracy"
    value = 100 - run.report["test_error_percent"]
    if run.is_dense:
        task, metric, value = "image-segmentation", "mean_iou", run.report["test_miou_percent"]
    result = {
        "task": {"type": task},
        "dataset": {"name": dataset, "type": dataset},
        "metrics": [{"type": metric, "value": round(value / 100, 4)}],
    }
    library = models.resolve(run.recipe.model.name)[0]
    return {
        "library_name": "timm" if library == "timm" else "pytorch",
        "pipeline_tag": task,
        "tags": ["local-learning", "hpff", run.recipe.local.method_name],
        "model-index": [{"name": run.recipe.model.name, "results": [result]}],
    }


def _levels(run: FinishedRun) -> str:
    local = run.recipe.local
    if local.is_backprop:
        return "backprop"
    levels = ["the independent level"] if local.independent else []
    levels += [f"cascades of {local.cascade}"] if local.has_cascades else []
    patches = f", {local.patches}×{local.patches} patches" if local.patches > 1 else ""
    how = f"{' and '.join(levels)}{patches}"
    return f"{escaped(local.method_name)} in {local.module_count} local modules ({how})"


def _code(run: FinishedRun) -> str:
    library, name = models.resolve(run.recipe.model.name)
    settings = dict(run.recipe.model.settings)
    arguments: dict[str, Any] = {"num_classes": len(run.facts.class_names), **settings}
    channels = run.facts.image_shape[0]
    if run.is_dense and library == "torchvision":
        own_head = {} if name.startswith("lraspp") else {"aux_loss": True}
        arguments = {**arguments, "weights_backbone": None, **own_head, **settings}
    if library == "timm" and channels != 3:
        arguments["in_chans"] = channels
    if library == "hpff" and channels != 3:
        arguments["in_channels"] = channels
    given = "".join(f", {key}={value!r}" for key, value in arguments.items())
    build = {
        "hpff": ("hpff", f"hpff.models.create({name!r}{given})"),
        "timm": ("timm", f"timm.create_model({name!r}{given})"),
        "torchvision": ("torchvision", f"torchvision.models.get_model({name!r}{given})"),
    }
    module, call = build[library]
    return f"import {module}, safetensors.torch\n\nmodel = {call}\n{_LOAD}"


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
