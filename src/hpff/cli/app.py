"""What the command line offers. Imports of torch and the like stay inside the commands."""

from __future__ import annotations

import typer

import hpff
from hpff.cli import arguments
from hpff.cli.examples import example
from hpff.cli.groups import lists, recipes
from hpff.cli.imports import Imports
from hpff.cli.process import seldom_collecting

app = typer.Typer(
    help="Train networks in gradient-isolated local modules.",
    epilog=example("hpff compare demo"),
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(lists, name="list")
app.add_typer(recipes, name="recipe")


FIRST_STEPS = """\
hpff trains networks in gradient-isolated local modules. What to do first:

  hpff compare demo                 BP, DGL and DGL+HPFF on digits, in minutes
  hpff plan resnet110 --modules 55  memory of each way, without a device
  hpff fit MODEL --budget 8GB       what fits, with the lines to paste
  hpff list recipes                 what there is for hpff train RECIPE
  hpff --help                       every command"""


@app.callback(invoke_without_command=True)
def root(context: typer.Context, version: arguments.Version = False) -> None:
    """Train networks in gradient-isolated local modules."""
    if version:
        typer.echo(f"hpff {hpff.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(FIRST_STEPS)


@app.command(
    short_help="Train one recipe into a run directory.",
    epilog=example("hpff train demo epochs=5 --out runs/first"),
)
def train(
    recipe: arguments.RecipeName,
    overrides: arguments.Overrides = None,
    out: arguments.Out = None,
    resume: arguments.Resume = False,
    wandb: arguments.Wandb = None,
    exits: arguments.Exits = False,
    json: arguments.Json = False,
    imports: Imports = None,
) -> None:
    """Train one recipe into a run directory (by default runs/RECIPE-1, -2, ...)."""
    from hpff.cli.train import train as command

    command(
        recipe,
        overrides or [],
        out,
        resume=resume,
        wandb=wandb,
        json=json,
        exits=exits,
        imports=imports or [],
    )


@app.command(
    short_help="Train several methods on one recipe, side by side.",
    epilog=example(
        "hpff compare demo --methods bp,dgl,dgl+hpff",
        "hpff compare demo --methods bp,dgl --seeds 0,1 epochs=5",
    ),
)
def compare(
    recipe: arguments.RecipeName,
    overrides: arguments.Overrides = None,
    methods: arguments.Labels = None,
    seeds: arguments.Seeds = None,
    out: arguments.Out = None,
    resume: arguments.Resume = False,
    wandb: arguments.Wandb = None,
    json: arguments.Json = False,
    imports: Imports = None,
) -> None:
    """Train several methods on one recipe and show them side by side."""
    from hpff.cli.compare import compare as command

    command(recipe, overrides or [], methods, seeds, out, resume=resume, wandb=wandb, json=json)


@app.command(
    short_help="Peak memory of a step, without a device.",
    epilog=example(
        "hpff plan resnet20 --modules 10 --budget 16GB", "hpff plan resnet20 --modules 10 --ranks 2"
    ),
)
@seldom_collecting()
def plan(
    model: arguments.ModelName,
    modules: arguments.Modules = None,
    balance: arguments.BalanceOf = "blocks",
    batch: arguments.BatchSize = 128,
    image: arguments.ImageSize = None,
    num_classes: arguments.Classes = 10,
    methods: arguments.MethodNames = None,
    cascade: arguments.Cascade = "2",
    patches: arguments.Patches = 2,
    recompute: arguments.Recomputed = None,
    recompute_budget: arguments.RecomputeBudget = 1.0,
    streams: arguments.StreamsOf = 1,
    light: arguments.Light = False,
    optimizer: arguments.Optimizer = "sgd",
    precision: arguments.Precision = "fp32",
    step_per_module: arguments.StepPerModule = False,
    budget: arguments.Budget = None,
    plot: arguments.Plot = None,
    ranks: arguments.Ranks = None,
    json: arguments.Json = False,
    imports: Imports = None,
) -> None:
    """Peak memory of a training step in several ways, without a device and without using it."""
    from hpff.cli.plan import plan as command
    from hpff.cli.workload import RowOptions

    given = RowOptions(
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
        recompute_budget=recompute_budget,
        streams=streams,
        light=light,
        optimizer=optimizer,
        precision=precision,
        step_per_module=step_per_module,
    )
    if ranks is None:
        command(given, budget, plot, json=json)
        return
    from hpff.cli.plan_ranks import plan_of_ranks

    plan_of_ranks(given, ranks, alone=budget is None and plot is None, json=json)


@app.command(
    short_help="The setting that fits a budget of memory, to paste.",
    epilog=example("hpff fit resnet20 --budget 256MiB"),
)
@seldom_collecting()
def fit(
    model: arguments.ModelName,
    budget: arguments.Within,
    batch: arguments.BatchSize = 128,
    image: arguments.ImageSize = None,
    num_classes: arguments.Classes = 10,
    method: arguments.OneMethod = None,
    published: arguments.Published = False,
    optimizer: arguments.Optimizer = "sgd",
    precision: arguments.Precision = "fp32",
    step_per_module: arguments.StepPerModule = False,
    json: arguments.Json = False,
    imports: Imports = None,
) -> None:
    """How to train a model within a budget of memory: nearest to backprop, and with least work."""
    from hpff.cli.fit import FitOptions
    from hpff.cli.fit import fit as command

    given = FitOptions(
        model=model,
        budget=budget,
        batch=batch,
        image=image,
        num_classes=num_classes,
        method=method,
        light=not published,
        optimizer=optimizer,
        precision=precision,
        step_per_module=step_per_module,
    )
    command(given, json=json)


@app.command(
    short_help="Measured step time and peak memory of methods.",
    epilog=example(
        "hpff bench resnet20 --modules 3 --methods dgl --batch 16",
        "hpff bench resnet20 --batch 16 --rounds 2 --parallel modules --ranks 2",
    ),
)
def bench(
    model: arguments.ModelName,
    modules: arguments.Modules = None,
    balance: arguments.BalanceOf = "blocks",
    batch: arguments.BatchSize = 128,
    image: arguments.ImageSize = None,
    num_classes: arguments.Classes = 10,
    methods: arguments.MethodNames = None,
    cascade: arguments.Cascade = "2",
    patches: arguments.Patches = 2,
    recompute: arguments.Recomputed = None,
    recompute_budget: arguments.RecomputeBudget = 1.0,
    streams: arguments.StreamsOf = 1,
    light: arguments.Light = False,
    optimizer: arguments.Optimizer = "sgd",
    precision: arguments.Precision = "fp32",
    step_per_module: arguments.StepPerModule = False,
    rounds: arguments.Rounds = 10,
    device: arguments.Device = "auto",
    compiled: arguments.Compiled = False,
    cuda_graph: arguments.CudaGraph = False,
    parallel: arguments.ParallelBench = None,
    ranks: arguments.Processes = None,
    json: arguments.Json = False,
    imports: Imports = None,
) -> None:
    """Measured step time and peak memory by every method, side by side in one run."""
    from hpff.cli.bench import bench as command
    from hpff.cli.bench_ranks import bench_of_ranks
    from hpff.cli.workload import RowOptions

    given = RowOptions(
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
        recompute_budget=recompute_budget,
        streams=streams,
        light=light,
        optimizer=optimizer,
        precision=precision,
        step_per_module=step_per_module,
    )
    if parallel is None and ranks is None:
        command(
            given,
            rounds=rounds,
            device=device,
            compiled=compiled,
            cuda_graph=cuda_graph,
            json=json,
        )
        return
    bench_of_ranks(
        given,
        parallel,
        ranks,
        rounds=rounds,
        on_cpu=device != "cuda" and not compiled and not cuda_graph,
        json=json,
        imports=imports or [],
    )


@app.command(
    short_help="A table of the paper, beside the paper's numbers.",
    epilog=example("hpff reproduce cifar10 --dry-run"),
)
def reproduce(
    table: arguments.TableName,
    overrides: arguments.Overrides = None,
    rows: arguments.RowNames = None,
    seeds: arguments.TableSeeds = None,
    epochs: arguments.Epochs = None,
    subset: arguments.Subset = None,
    data: arguments.Data = None,
    out: arguments.Out = None,
    dry_run: arguments.DryRun = False,
    wandb: arguments.Wandb = None,
    json: arguments.Json = False,
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


@app.command(
    short_help="Test a trained model on a data set or split.",
    epilog=example("hpff evaluate runs/first --split train"),
)
def evaluate(
    run: arguments.FinishedRun,
    dataset: arguments.OtherData = None,
    split: arguments.Split = "test",
    match: arguments.Match = "name",
    class_names: arguments.ClassNames = None,
    treatment: arguments.Treatment = None,
    scales: arguments.Scales = None,
    flip: arguments.Flip = False,
    window: arguments.Window = None,
    pictures: arguments.Overlays = None,
    exits: arguments.TestedExits = False,
    skip_broken: arguments.SkipBroken = False,
    json: arguments.Json = False,
    imports: Imports = None,
) -> None:
    """Test a trained model on a dataset or split: top-1 and top-5, or mIoU class by class."""
    from hpff.cli.evaluate import Views
    from hpff.cli.evaluate import evaluate as command

    command(
        run,
        dataset,
        split,
        match,
        class_names,
        treatment,
        Views(scales, flip, window, pictures),
        exits=exits,
        skip_broken=skip_broken,
        json=json,
    )


@app.command(
    short_help="See what modules learn: one report.html.",
    epilog=example("hpff analyze runs/first --samples 500"),
)
def analyze(
    runs: arguments.Networks,
    data: arguments.AnyData = None,
    samples: arguments.Samples = 2000,
    embedded: arguments.Embedded = 500,
    gradient_batches: arguments.GradientBatches = 4,
    images: arguments.ImageNumbers = None,
    pictures: arguments.Pictures = 4,
    modules: arguments.OtherCut = None,
    image_size: arguments.SideOf = None,
    labels: arguments.NamesOf = None,
    figures: arguments.Figures = False,
    out: arguments.Out = None,
    json: arguments.Json = False,
    imports: Imports = None,
) -> None:
    """See what the modules of trained networks learn: one self-contained report.html.

    CKA with the first network, linear probes, early exits, patch agreement, gradients beside
    backprop's, t-SNE and PCA, activation maps.
    """
    from hpff.cli.analyze import AnalyzeOptions
    from hpff.cli.analyze import analyze as command

    given = AnalyzeOptions(
        runs=runs,
        dataset=data,
        samples=samples,
        embedded=embedded,
        gradient_batches=gradient_batches,
        images=images,
        pictures=pictures,
        modules=modules,
        image_size=image_size,
        labels=labels,
        figures=figures,
        out=out,
    )
    command(given, json=json)


@app.command(
    short_help="Write a run as a folder for a model hub.",
    epilog=example("hpff export runs/first first-model"),
)
def export(
    run: arguments.FinishedRun,
    folder: arguments.NewFolder,
    json: arguments.Json = False,
    imports: Imports = None,
) -> None:
    """Write a run as a folder for a model hub: weights, recipe, metrics, a model card."""
    from hpff.cli.export import export as command

    command(run, folder, json=json)
