"""The examples of other people's loops run, and learn."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_examples import load

from hpff import data


@pytest.mark.long
def test_a_loop_of_ones_own_learns(capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    example: Any = load("plain_loop")
    learner, digits = example.train(3, bf16=False)
    assert example.error(learner, digits) < 0.5
    assert all(parameter.grad is None for parameter in learner.parameters())
    assert capsys.readouterr().out.count("epoch") == 3


@pytest.mark.long
def test_a_loop_in_sixteen_bits_learns() -> None:
    example: Any = load("plain_loop")
    learner, digits = example.train(3, bf16=True)
    assert example.error(learner, digits) < 0.75
    assert {parameter.dtype for parameter in learner.parameters()} == {torch.float32}


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # Hugging Face's advice.
@pytest.mark.skipif(sys.version_info < (3, 11), reason="its pinned version needs Python 3.11")
def test_hugging_faces_trainer_learns_and_saves(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    example: Any = load("hugging_face")
    quiet = {"disable_tqdm": True, "save_strategy": "epoch"}
    metrics = example.train(
        str(tmp_path), 2, gradient_accumulation_steps=2, per_device_train_batch_size=32, **quiet
    )
    assert metrics["eval_error"] < 0.8
    steps = 2 * (len(data.load("digits").train) // 64 + 1)
    saved = tmp_path / f"checkpoint-{steps}" / "model.safetensors"
    from safetensors.torch import load_file

    names = load_file(saved)
    assert "model.vit.embeddings.cls_token" in names
    assert any(name.startswith("cascade_auxiliary.") for name in names)


@pytest.mark.filterwarnings("ignore")
def test_gradient_accumulation_changes_no_gradient(tmp_path: Path) -> None:
    """Two halves of a batch give what the batch gives; by backprop, where no BatchNorm sees it."""
    pytest.importorskip("transformers")
    example: Any = load("hugging_face")
    from transformers import TrainingArguments, ViTConfig, ViTForImageClassification

    from hpff import LocalLearner

    gradients = []
    for steps in (1, 2):
        torch.manual_seed(0)
        learner = LocalLearner(
            ViTForImageClassification(ViTConfig(**example.CONFIG)),
            modules=6,
            example={"pixel_values": torch.rand(2, 1, 8, 8)},
            num_classes=10,
            method="bp",
        )
        arguments = TrainingArguments(
            output_dir=str(tmp_path), gradient_accumulation_steps=steps, use_cpu=True
        )
        trainer = example.LocalTrainer(model=learner, args=arguments)
        images = data.load("digits").train
        pixels = images.images[:32].float() / 255
        for part in torch.arange(32).chunk(steps):
            batch = {"pixel_values": pixels[part], "labels": images.labels[part]}
            trainer.training_step(learner, batch)
        gradients.append([p.grad for p in learner.model.parameters()])
    for whole, halves in zip(*gradients, strict=True):
        torch.testing.assert_close(halves, whole, rtol=1e-4, atol=1e-6)
