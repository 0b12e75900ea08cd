"""The arguments and options of the commands, with their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpff.cli import completion

Version = Annotated[bool, typer.Option("--version", help="Print the version.")]
RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A name from `hpff list recipes`, or a .yaml file.",
        autocompletion=completion.recipes,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes, such as epochs=10 optimizer.lr=0.1."),
]
NewRecipe = Annotated[Path, typer.Argument(metavar="FILE", help="A new .yaml file.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder for the results.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what is in the folder.")]
Wandb = Annotated[
    str | None, typer.Option("--wandb", metavar="PROJECT", help="Log to Weights & Biases as well.")
]
Exits = Annotated[
    bool,
    typer.Option(
        "--exits", help="Test every auxiliary network too, whenever the network is tested."
    ),
]
TestedExits = Annotated[
    bool,
    typer.Option("--exits", help="Test the auxiliary networks: each, and all with the head."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]

# What `plan` and `bench` are told of a workload.
ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A name from `hpff list models`, or MODULE:FUNCTION of a module given by --import.",
        autocompletion=completion.models,
    ),
]
Modules = Annotated[
    str | None,
    typer.Option(
        metavar="K",
        help="How many modules, or after which submodules to cut, with commas between; by default "
        "one for each block.",
    ),
]
BalanceOf = Annotated[
    str,
    typer.Option(
        help="Share the blocks out: blocks, parameters or memory.",
        autocompletion=completion.one_of("blocks", "parameters", "memory"),
    ),
]
BatchSize = Annotated[int, typer.Option(help="Images in a batch.")]
ImageSize = Annotated[
    str | None,
    typer.Option(metavar="C,H,W", help="Size of an image; by default what the model is made for."),
]
Classes = Annotated[int, typer.Option(help="Classes of the task.")]
MethodNames = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="Such as dgl,infopro (alone and with HPFF), dgl+hilo, a preset, or all; a plan is of "
        "dgl by default.",
        autocompletion=completion.methods,
    ),
]
Cascade = Annotated[
    str,
    typer.Option(
        metavar="K|auto", help="k: modules that a cascade trains; auto: as far as memory allows."
    ),
]
Patches = Annotated[int, typer.Option(help="n: n×n patches.")]
Recomputed = Annotated[
    str | None,
    typer.Option(
        "--recompute",
        metavar="HOW",
        help="Rows with recomputation too, as in a recipe: once, blocks, repeatedly (ever less "
        "memory), or several with commas between.",
        autocompletion=completion.some_of("once", "blocks", "repeatedly"),
    ),
]
RecomputeBudget = Annotated[
    float,
    typer.Option(
        "--recompute-budget",
        metavar="X",
        help="Rows by blocks may take X times the least memory, to recompute less.",
    ),
]
StreamsOf = Annotated[
    int,
    typer.Option(
        "--streams",
        metavar="N",
        help="CUDA streams that take local modules' work in turns: less time, more memory.",
    ),
]
Light = Annotated[
    bool, typer.Option("--light", help="Narrow auxiliary networks on pooled maps, of any method.")
]
Optimizer = Annotated[
    str,
    typer.Option(
        help="sgd, plain-sgd, adam or adamw.",
        autocompletion=completion.one_of("sgd", "plain-sgd", "adam", "adamw"),
    ),
]
Precision = Annotated[
    str,
    typer.Option(help="fp32 or bf16.", autocompletion=completion.one_of("fp32", "bf16")),
]
StepPerModule = Annotated[
    bool, typer.Option("--step-per-module", help="Step each local module as soon as it is done.")
]

# What only one of them is told.
Within = Annotated[str, typer.Option("--budget", metavar="SIZE", help="Such as 8GB or 24GiB.")]
Published = Annotated[
    bool,
    typer.Option(
        "--published", help="The method's published auxiliary networks, not light ones; no presets."
    ),
]
OneMethod = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Of local learning; by default presets are tried, and dgl.",
        autocompletion=completion.method,
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Such as 16GB or 24GiB: show the largest batch within."),
]
Plot = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Draw memory over the step: .png, .svg or .pdf."),
]
Ranks = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Plan module-parallel training on N devices: memory and traffic of each, throughput.",
    ),
]
ParallelBench = Annotated[
    str | None,
    typer.Option(
        "--parallel",
        metavar="WHAT",
        help="modules or data: share it out over --ranks processes, beside one.",
        autocompletion=completion.one_of("modules", "data"),
    ),
]
Processes = Annotated[
    int | None, typer.Option("--ranks", metavar="N", help="With --parallel: processes, such as 2.")
]
Rounds = Annotated[int, typer.Option(help="Measured steps of every method, in turns.")]
Device = Annotated[
    str,
    typer.Option(
        help="auto, cpu or cuda.", autocompletion=completion.one_of("auto", "cpu", "cuda")
    ),
]
Compiled = Annotated[bool, typer.Option("--compile", help="Compile the models.")]
CudaGraph = Annotated[
    bool, typer.Option("--cuda-graph", help="Record each step as a CUDA graph, and replay it.")
]

# What `compare` is told.
Labels = Annotated[
    str | None,
    typer.Option(
        metavar="LABELS",
        help="Such as bp,dgl,dgl+hpff: bp, or a method alone (independent level only) or with "
        "+cl (cascade level only), +hilo (both), +pff, +cl+pff or +hpff (both and patches).",
        autocompletion=completion.labels,
    ),
]
Seeds = Annotated[
    str | None, typer.Option(metavar="SEEDS", help="Such as 0,1,2; by default the recipe's.")
]

# What `reproduce` is told.
TableName = Annotated[
    str,
    typer.Argument(
        metavar="TABLE",
        help="A name from `hpff list tables`, or a .yaml file.",
        autocompletion=completion.tables,
    ),
]
RowNames = Annotated[
    str | None,
    typer.Option(metavar="NAMES", help="Such as resnet32-bp,*-k16-dgl*; by default all."),
]
TableSeeds = Annotated[
    str | None, typer.Option(metavar="SEEDS", help="Such as 0,1,2; by default the recipes'.")
]
Epochs = Annotated[int | None, typer.Option(metavar="N", help="Epochs of every run.")]
Subset = Annotated[int | None, typer.Option(metavar="N", help="Training images of every run.")]
Data = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NAME=]DATA",
        help="Other data, such as parquet:FOLDER, for all runs or those published on NAME.",
        autocompletion=completion.data,
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Train nothing; show what there is and the paper's.")
]

# What is done with a finished run.
FinishedRun = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")]
OtherData = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="Such as stl10 or folder:PATH; by default the run's.",
        autocompletion=completion.data,
    ),
]
Split = Annotated[
    str,
    typer.Option(
        metavar="SPLIT",
        help="test or train.",
        autocompletion=completion.one_of("test", "train"),
    ),
]
Match = Annotated[
    str,
    typer.Option(
        metavar="HOW",
        help="Classes by name (those that both have), or by position (label i is class i).",
        autocompletion=completion.one_of("name", "position"),
    ),
]
ClassNames = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="The run's classes in order, or cifar10 or stl10 for theirs, where the data of "
        "the run did not name them.",
    ),
]
Treatment = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Of folder:PATH or parquet:FOLDER, as in a recipe, such as plain."
    ),
]
SkipBroken = Annotated[
    bool, typer.Option("--skip-broken", help="Leave out images that cannot be read.")
]

# What `analyze` is told.
Networks = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN",
        help="Folders of finished runs, or MODEL=FILE: a model by name, perhaps with settings "
        "(resnet20,width=8), and its weights (.safetensors, or torch.save of a state_dict).",
    ),
]
AnyData = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DATA",
        help="Such as cifar10 or parquet:FOLDER; by default the runs'.",
        autocompletion=completion.data,
    ),
]
Samples = Annotated[
    int, typer.Option(metavar="N", help="Images of the test and of the training set, at most.")
]
Embedded = Annotated[int, typer.Option(metavar="N", help="Images in t-SNE and PCA.")]
GradientBatches = Annotated[
    int, typer.Option(metavar="N", help="Training batches whose gradients are compared.")
]
ImageNumbers = Annotated[
    str | None,
    typer.Option(metavar="NUMBERS", help="Test images to draw maps of, such as 3,14,15."),
]
Pictures = Annotated[int, typer.Option(metavar="N", help="How many random ones otherwise.")]
OtherCut = Annotated[
    str | None,
    typer.Option(
        metavar="K",
        help="Another cut for features: how many modules, or after which submodules; by default "
        "each run's own.",
    ),
]
SideOf = Annotated[
    int | None, typer.Option(metavar="PIXELS", help="Resize images for a MODEL=FILE.")
]
NamesOf = Annotated[
    str | None, typer.Option(metavar="NAMES", help="What to call the networks, with commas.")
]
Figures = Annotated[bool, typer.Option("--figures", help="Write every chart as an SVG file, too.")]
Scales = Annotated[
    str | None,
    typer.Option(
        metavar="NUMBERS",
        help="Segmentation: scales whose predictions are averaged, such as 0.5,1,1.5; published: "
        "0.5 to 1.75.",
    ),
]
Flip = Annotated[
    bool, typer.Option("--flip", help="Segmentation: average with mirrored images too.")
]
Window = Annotated[
    str | None,
    typer.Option(metavar="H,W", help="Segmentation: predict by sliding windows of this size."),
]
Overlays = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Segmentation: draw image, labels, answers side by side."),
]
NewFolder = Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder.")]
