"""What the command line offers. Imports of torch and the like stay inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import hpff
from hpff.cli.imports import Imports

app = typer.Typer(
    help="Train networks in gradient-isolated local modules.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
lists = typer.Typer(help="What there is: models, datasets, methods, recipes, tables.")
recipes = typer.Typer(help="Read a recipe, take one to edit, validate one.")
app.add_typer(lists, name="list")
app.add_typer(recipes, name="recipe")

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A name from `hpff list recipes`, or a .yaml file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes, such as epochs=10 optimizer.lr=0.1."),
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder for the results.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what is in the folder.")]
Wandb = Annotated[
    str | None, typer.Option("--wandb", metavar="PROJECT", help="Log to Weights & Biases as well.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]

# What `plan` and `bench` are told of a workload.
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="A name from `hpff list models`.")]
Modules = Annotated[
    str | None,
    typer.Option(
        metavar="K",
        help="How many modules, or after which submodules to cut, with commas between; by default "
        "one for each block.",
    ),
]
BalanceOf = Annotated[str, typer.Option(help="Share the blocks out: blocks, parameters or memory.")]
BatchSize = Annotated[int, typer.Option(help="Images in a batch.")]
ImageSize = Annotated[
    str | None,
    typer.Option(metavar="C,H,W", help="Size of an image; by default what the model is made for."),
]
Classes = Annotated[int, typer.Option(help="Classes of the task.")]
MethodNames = Annotated[
    str | None, typer.Option(metavar="NAMES", help="Such as dgl,infopro; by default every method.")
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
        help="Rows with recomputation too, as in a recipe: once, repeatedly (less memory, more "
        "time), or once,repeatedly.",
    ),
]
Optimizer = Annotated[str, typer.Option(help="sgd, plain-sgd, adam or adamw.")]
Precision = Annotated[str, typer.Option(help="fp32 or bf16.")]
StepPerModule = Annotated[
    bool, typer.Option("--step-per-module", help="Step each local module as soon as it is done.")
]


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Train networks in gradient-isolated local modules."""
    if version:
        typer.echo(f"hpff {hpff.__version__}")
        raise typer.Exit


@app.command()
def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    out: Out = None,
    resume: Resume = False,
    wandb: Wandb = None,
    json: Json = False,
    imports: Imports = None,
) -> None:
    """Train one recipe into a run directory (by default runs/RECIPE-1, -2, ...)."""
    from hpff.cli.train import train as command

    command(recipe, overrides or [], out, resume=resume, wandb=wandb, json=json)


@app.command()
def compare(
    recipe: RecipeName,
    overrides: Overrides = None,
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="LABELS",
            help="Such as bp,dgl,dgl+hpff: bp, or a method alone (independent level only) or with "
            "+cl (cascade level only), +hilo (both), +pff, +cl+pff or +hpff (both and patches).",
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="SEEDS", help="Such as 0,1,2; by default the recipe's.")
    ] = None,
    out: Out = None,
    resume: Resume = False,
    wandb: Wandb = None,
    json: Json = False,
    imports: Imports = None,
) -> None:
    """Train several methods on one recipe and show them side by side."""
    from hpff.cli.compare import compare as command

    command(recipe, overrides or [], methods, seeds, out, resume=resume, wandb=wandb, json=json)


@app.command()
def plan(
    model: ModelName,
    modules: Modules = None,
    balance: BalanceOf = "blocks",
    batch: BatchSize = 128,
    image: ImageSize = None,
    num_classes: Classes = 10,
    methods: MethodNames = None,
    cascade: Cascade = "2",
    patches: Patches = 2,
    recompute: Recomputed = None,
    optimizer: Optimizer = "sgd",
    precision: Precision = "fp32",
    step_per_module: StepPerModule = False,
    budget: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Such as 16GB or 24GiB: show the largest batch within."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw memory over the step: .png, .svg or .pdf."),
    ] = None,
    json: Json = False,
    imports: Imports = None,
) -> None:
    """Peak memory of a training step by every method, without a device and without using it."""
    from hpff.cli.plan import plan as command
    from hpff.cli.workload import WorkloadOptions

    given = WorkloadOptions(
        model=model,
        modules=modules,
        balance=balance,
        batch=batch,
        image=image,
        num_classes=num_classes,
        methods=methods,
        cascade=cascade,
        patches=patches,
        recompute=recompute,
        optimizer=optimizer,
        precision=precision,
        step_per_module=step_per_module,
    )
    command(given, budget, plot, json=json)


@app.command()
def bench(
    model: ModelName,
    modules: Modules = None,
    balance: BalanceOf = "blocks",
    batch: BatchSize = 128,
    image: ImageSize = None,
    num_classes: Classes = 10,
    methods: MethodNames = None,
    cascade: Cascade = "2",
    patches: Patches = 2,
    recompute: Recomputed = None,
    optimizer: Optimizer = "sgd",
    precision: Precision = "fp32",
    step_per_module: StepPerModule = False,
    rounds: Annotated[int, typer.Option(help="Measured steps of every method, in turns.")] = 10,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the models.")] = False,
    json: Json = False,
    imports: Imports = None,
) -> None:
    """Measured step time and peak memory by every method, side by side in one run."""
    from hpff.cli.bench import bench as command
    from hpff.cli.workload import WorkloadOptions

    given = WorkloadOptions(
        model=model,
        modules=modules,
        balance=balance,
        batch=batch,
        image=image,
        num_classes=num_classes,
        methods=methods,
        cascade=cascade,
        patches=patches,
        recompute=recompute,
        optimizer=optimizer,
        precision=precision,
        step_per_module=step_per_module,
    )
    command(given, rounds=rounds, device=device, compiled=compiled, json=json)


@app.command()
def reproduce(
    table: Annotated[
        str,
        typer.Argument(metavar="TABLE", help="A name from `hpff list tables`, or a .yaml file."),
    ],
    overrides: Overrides = None,
    rows: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Such as resnet32-bp,*-k16-dgl*; by default all."),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="SEEDS", help="Such as 0,1,2; by default the recipes'.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(metavar="N", help="Epochs of every run.")] = None,
    subset: Annotated[
        int | None, typer.Option(metavar="N", help="Training images of every run.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]DATA",
            help="Other data, such as parquet:FOLDER, for all runs or those published on NAME.",
        ),
    ] = None,
    out: Out = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Train nothing; show what there is and the paper's.")
    ] = False,
    wandb: Wandb = None,
    json: Json = False,
    imports: Imports = None,
) -> None:
    """Train what is missing of a table of the paper, and show it beside the paper's numbers.

    Finished runs are kept and cut ones go on, by default below runs/reproduce. The table says
    what --epochs, --subset, --data and KEY=VALUE have changed.
    """
    from hpff.cli.reproduce import reproduce as command

    command(
        table,
        overrides or [],
        rows=rows,
        seeds=seeds,
        epochs=epochs,
        subset=subset,
        data=data or [],
        out=out,
        dry_run=dry_run,
        wandb=wandb,
        json=json,
    )


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    dataset: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Such as stl10 or folder:PATH; by default the run's."),
    ] = None,
    split: Annotated[str, typer.Option(metavar="SPLIT", help="test or train.")] = "test",
    match: Annotated[
        str,
        typer.Option(
            metavar="HOW",
            help="Classes by name (those that both have), or by position (label i is class i).",
        ),
    ] = "name",
    class_names: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="The run's classes in order, or cifar10 or stl10 for theirs, where the data of "
            "the run did not name them.",
        ),
    ] = None,
    treatment: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Of folder:PATH or parquet:FOLDER, as in a recipe, such as plain."
        ),
    ] = None,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Leave out images that cannot be read.")
    ] = False,
    json: Json = False,
    imports: Imports = None,
) -> None:
    """Test a trained model on another dataset or split: top-1 and top-5."""
    from hpff.cli.evaluate import evaluate as command

    command(run, dataset, split, match, class_names, treatment, skip_broken=skip_broken, json=json)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder.")],
    imports: Imports = None,
) -> None:
    """Write a run as a folder for a model hub: weights, recipe, metrics, a model card."""
    from hpff.cli.export import export as command

    command(run, folder)


@lists.command("models")
def list_models(json: Json = False) -> None:
    """Models by name."""
    from hpff import models
    from hpff.cli.tables import show_list

    show_list(models.names(), json=json)


@lists.command("datasets")
def list_datasets(json: Json = False) -> None:
    """Datasets by name."""
    from hpff import data
    from hpff.cli.tables import show_list

    show_list(data.names(), json=json)


@lists.command("methods")
def list_methods(json: Json = False, imports: Imports = None) -> None:
    """Methods by name."""
    from hpff import methods
    from hpff.cli.tables import show_list

    show_list(methods.names(), json=json)


@lists.command("recipes")
def list_recipes(json: Json = False) -> None:
    """Packaged recipes by name."""
    from hpff.cli.tables import show_list
    from hpff.recipes import files as recipe_files

    show_list(recipe_files.names(), json=json)


@lists.command("tables")
def list_tables(json: Json = False) -> None:
    """Tables of the paper by name, for `hpff reproduce`."""
    from hpff.cli.tables import show_list
    from hpff.experiments import paper_tables

    show_list(paper_tables.names(), json=json)


@recipes.command("show")
def recipe_show(
    recipe: RecipeName,
    overrides: Overrides = None,
    json: Json = False,
    imports: Imports = None,
) -> None:
    """Print a recipe with every key written out."""
    from hpff.cli.recipe import show

    show(recipe, overrides or [], json=json)


@recipes.command("copy")
def recipe_copy(
    recipe: RecipeName,
    destination: Annotated[Path, typer.Argument(metavar="FILE", help="A new .yaml file.")],
    overrides: Overrides = None,
    imports: Imports = None,
) -> None:
    """Write a recipe, every key written out, into a file to edit."""
    from hpff.cli.recipe import copy

    copy(recipe, destination, overrides or [])


@recipes.command("check")
def recipe_check(recipe: RecipeName, overrides: Overrides = None, imports: Imports = None) -> None:
    """Validate a recipe: every fault, one line each, with the key's full path."""
    from hpff.cli.recipe import check

    check(recipe, overrides or [])
