"""A Hugging Face model under Hugging Face's own Trainer, by HPFF.

    python examples/hugging_face.py [--epochs 10]

A small ViTForImageClassification learns digits. The model is untouched, and so is everything that
the Trainer does around a step: its arguments, schedule, clipping, logging, evaluation, checkpoints.
Needs the packages transformers and accelerate; downloads nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from hpff import LocalLearner, data
from hpff.torch_support.torchvision_import import torchvision

torchvision()  # transformers imports it, and hpff's door mends one that cannot be imported.

from transformers import (  # noqa: E402
    EvalPrediction,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

CONFIG = {
    "hidden_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "image_size": 8,
    "patch_size": 2,
    "num_channels": 1,
    "num_labels": 10,
}


class LocalTrainer(Trainer):
    """A Trainer whose step is all local backwards; its model is the learner."""

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Fill the gradients; the Trainer clips them, steps, and logs the loss."""
        model.train()
        learner: LocalLearner = self.accelerator.unwrap_model(model)
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels")
        share = 1 / self.args.gradient_accumulation_steps
        with self.accelerator.autocast():
            losses = learner.backward(inputs, labels, scale=share)
        return losses.total.detach() * share


class Images(Dataset[dict[str, Tensor]]):
    """Images as the Trainer takes them."""

    def __init__(self, images: data.ImageSet) -> None:
        self._pixels = images.images.float() / 127.5 - 1
        self._labels = images.labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self._pixels[index], "labels": self._labels[index]}


def train(folder: str, epochs: int, **settings: Any) -> dict[str, float]:
    """Train in a folder; the Trainer's metrics of the test images."""
    torch.manual_seed(0)
    digits = data.load("digits")
    train_images, test_images = Images(digits.train), Images(digits.test)
    learner = LocalLearner(
        ViTForImageClassification(ViTConfig(**CONFIG)),
        modules=6,
        example={"pixel_values": torch.rand(2, 1, 8, 8)},
        num_classes=10,
    )
    defaults = {
        "output_dir": folder,
        "num_train_epochs": epochs,
        "per_device_train_batch_size": 64,
        "per_device_eval_batch_size": 360,
        "learning_rate": 2e-3,
        "weight_decay": 0.05,
        "warmup_steps": 20,
        "logging_steps": 20,
        "remove_unused_columns": False,  # The learner's forward names no columns.
        "label_names": ["labels"],
        "report_to": "none",
        "use_cpu": True,
    }
    trainer = LocalTrainer(
        model=learner,
        args=TrainingArguments(**{**defaults, **settings}),
        train_dataset=train_images,
        eval_dataset=test_images,
        compute_metrics=error,
    )
    trainer.train()
    metrics: dict[str, float] = trainer.evaluate()
    return metrics


def error(answers: EvalPrediction) -> dict[str, float]:
    """The share of wrong answers."""
    return {"error": float((answers.predictions.argmax(1) != answers.label_ids).mean())}


def main() -> None:
    """Read the options and train."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        metrics = train(folder, options.epochs)
    print(f"test error {100 * metrics['eval_error']:.1f} %")


if __name__ == "__main__":
    main()
