"""Which library does a sentence of documentation come from? A small transformer, by HPFF.

    python examples/text.py [--methods bp,dgl,dgl+hpff] [--seeds 0,1,2]

The corpus is on every machine that has hpff: the docstrings of Python's standard library, NumPy,
SciPy, scikit-learn and PyTorch, their first paragraphs, without the libraries' names. Every fifth
source file is for testing, so near copies inside a file are never on both sides.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.util
import itertools
import re
import statistics
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpff import LocalLearner
from hpff.runs import machine

LIBRARIES = ("stdlib", "numpy", "scipy", "sklearn", "torch")
NAMES = {"python", "numpy", "np", "scipy", "sklearn", "scikit", "torch", "pytorch"}
METHODS: dict[str, dict[str, Any]] = {
    "bp": {"method": "bp"},
    "dgl": {"cascade": 1, "patches": 1},
    "dgl+cl": {"independent": False, "patches": 1},
    "dgl+hilo": {"patches": 1},
    "dgl+hpff": {},
}
LENGTH = 40
PADDING, UNKNOWN = 0, 1


class TextClassifier(nn.Module):
    """A transformer encoder, and a linear layer on the mean over tokens.

    Takes token numbers (B, L) and a mask (B, L), 1 where there is a token; gives (B, classes).
    """

    def __init__(self, words: int, classes: int, *, width: int = 64, depth: int = 6) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width, padding_idx=PADDING)
        self.places = nn.Parameter(torch.randn(LENGTH, width) * 0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, 2, 2 * width, dropout=0.1, batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, words: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.words(words) + self.places[: words.shape[1]]
        padding = attention_mask == 0
        for block in self.blocks:
            x = block(x, src_key_padding_mask=padding)
        weights = attention_mask[..., None] / attention_mask.sum(1)[:, None, None]
        logits: Tensor = self.head((self.norm(x) * weights).sum(1))
        return logits


@dataclass(frozen=True)
class Texts:
    """Token numbers (N, LENGTH), padded at the end, and labels (N,)."""

    words: Tensor
    labels: Tensor

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Any]:
        """The model's arguments and the labels, cut to the longest text of each batch."""
        count = len(self.labels)
        order = torch.arange(count)
        if generator is not None:
            order = torch.randperm(count, generator=generator)
        for chosen in order.split(size):
            mask = self.words[chosen] != PADDING
            longest = int(mask.sum(1).max())
            words = self.words[chosen, :longest]
            yield {"words": words, "attention_mask": mask[:, :longest]}, self.labels[chosen]


def source_files(library: str) -> list[Path]:
    """The library's Python files, in an order that is by chance but always the same."""
    if library == "stdlib":
        root = Path(sysconfig.get_paths()["stdlib"])
    else:
        spec = importlib.util.find_spec(library)
        root = Path(str(spec.origin if spec else None)).parent
    files = [
        f for f in root.rglob("*.py") if not {"site-packages", "test", "tests"} & set(_in(f, root))
    ]

    def chance(file: Path) -> bytes:
        return hashlib.blake2b(file.relative_to(root).as_posix().encode()).digest()

    return sorted(files, key=chance)


def _in(file: Path, root: Path) -> tuple[str, ...]:
    return file.relative_to(root).parts


def paragraphs(file: Path) -> Iterator[list[str]]:
    """The words of the first paragraph of each docstring in a file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong with others' string literals
            tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            text = (ast.get_docstring(node) or "").partition("\n\n")[0].lower()
            words = [word for word in re.findall(r"[a-z]+|\d|[^\w\s]", text) if word not in NAMES]
            if sum(word.isalpha() for word in words) >= 4:
                yield words[:LENGTH]


def corpus(most: int) -> tuple[Texts, Texts, int]:
    """Training and test texts, at most ``most`` of each library, and the vocabulary's size."""
    parts: tuple[list[Any], list[Any]] = ([], [])
    seen: set[str] = set()
    for label, library in enumerate(LIBRARIES):
        texts: list[tuple[bool, list[str]]] = []
        for number, file in enumerate(source_files(library)):
            for words in paragraphs(file):
                if " ".join(words) not in seen:
                    seen.add(" ".join(words))
                    texts.append((number % 5 == 0, words))
            if len(texts) >= most:
                break
        for is_test, words in texts[:most]:
            parts[is_test].append((words, label))
    counts = Counter(itertools.chain.from_iterable(words for words, _ in parts[0]))
    known = [word for word, count in counts.most_common(8000) if count > 1]
    numbers = {word: number for number, word in enumerate(known, start=UNKNOWN + 1)}
    train, test = (_texts(part, numbers) for part in parts)
    return train, test, len(known) + 2


def _texts(part: list[Any], numbers: dict[str, int]) -> Texts:
    words = torch.full((len(part), LENGTH), PADDING)
    for row, (text, _) in zip(words, part, strict=True):
        row[: len(text)] = torch.tensor([numbers.get(word, UNKNOWN) for word in text])
    return Texts(words, torch.tensor([label for _, label in part]))


def train(texts: Texts, vocabulary: int, method: str, *, epochs: int, seed: int) -> LocalLearner:
    """A learner after some epochs of AdamW."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = TextClassifier(vocabulary, len(LIBRARIES))
    example, _ = next(texts.batches(2))
    learner = LocalLearner(
        model, modules=6, example=example, num_classes=len(LIBRARIES), **METHODS[method]
    )
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        learner.train()
        for inputs, labels in texts.batches(64, generator):
            optimizer.zero_grad()
            learner.backward(inputs, labels)
            optimizer.step()
        schedule.step()
    return learner


@torch.no_grad()
def error(learner: LocalLearner, texts: Texts) -> float:
    """Percent of texts that the model gets wrong."""
    learner.eval()
    wrong = sum(
        int((learner(**inputs).argmax(1) != labels).sum()) for inputs, labels in texts.batches(256)
    )
    return 100 * wrong / len(texts.labels)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--methods", default="bp,dgl,dgl+hpff", help=f"of {', '.join(METHODS)}")
    parser.add_argument("--seeds", default="0", help="such as 0,1,2")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--texts", type=int, default=2500, help="the most of each library")
    given = parser.parse_args()
    texts, test, vocabulary = corpus(given.texts)
    print(f"{len(texts.labels)} training texts, {len(test.labels)} test texts, {vocabulary} words")
    print("\n| method | test error, % |\n| --- | --- |")
    for method in given.methods.split(","):
        errors = []
        for seed in given.seeds.split(","):
            learner = train(texts, vocabulary, method, epochs=given.epochs, seed=int(seed))
            errors.append(error(learner, test))
        spread = f" ± {statistics.stdev(errors):.2f}" if len(errors) > 1 else ""
        print(f"| {method} | {statistics.mean(errors):.2f}{spread} |", flush=True)
    print(f"\n{machine.describe()}")


if __name__ == "__main__":
    main()
