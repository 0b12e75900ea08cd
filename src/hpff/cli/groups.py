"""`hpff list` and `hpff recipe`. Imports of torch and the like stay inside the commands."""

from __future__ import annotations

import typer

from hpff.cli import arguments
from hpff.cli.examples import example
from hpff.cli.imports import Imports

lists = typer.Typer(
    help="What there is: models, data, methods, presets, recipes, tables.",
    epilog=example("hpff list recipes"),
)
recipes = typer.Typer(
    help="Read a recipe, take one to edit, validate one.",
    epilog=example("hpff recipe show demo"),
)


@lists.callback(invoke_without_command=True)
@recipes.callback(invoke_without_command=True)
def show_help(context: typer.Context) -> None:
    """Say what the group has where no command is given."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@lists.command("models", epilog=example("hpff list models"))
def list_models(json: arguments.Json = False) -> None:
    """Models by name."""
    from hpff import models
    from hpff.cli.tables import show_list

    show_list(models.names(), json=json)


@lists.command("datasets", epilog=example("hpff list datasets"))
def list_datasets(json: arguments.Json = False) -> None:
    """Datasets by name."""
    from hpff import data
    from hpff.cli.tables import show_list

    show_list(data.names(), json=json)


@lists.command("methods", epilog=example("hpff list methods --json"))
def list_methods(json: arguments.Json = False, imports: Imports = None) -> None:
    """Methods by name."""
    from hpff import methods
    from hpff.cli.tables import show_list

    show_list(methods.names(), json=json)


@lists.command("presets", epilog=example("hpff list presets"))
def list_presets(json: arguments.Json = False) -> None:
    """Presets by name: settings that go together."""
    from hpff.cli.tables import show_list
    from hpff.presets import named

    show_list(named(), json=json)


@lists.command("recipes", epilog=example("hpff list recipes"))
def list_recipes(json: arguments.Json = False) -> None:
    """Packaged recipes by name."""
    from hpff.cli.tables import show_list
    from hpff.recipes import files as recipe_files

    show_list(recipe_files.names(), json=json)


@lists.command("tables", epilog=example("hpff list tables"))
def list_tables(json: arguments.Json = False) -> None:
    """Tables of the paper by name, for `hpff reproduce`."""
    from hpff.cli.tables import show_list
    from hpff.experiments import paper_tables

    show_list(paper_tables.names(), json=json)


@recipes.command("show", epilog=example("hpff recipe show demo epochs=5"))
def recipe_show(
    recipe: arguments.RecipeName,
    overrides: arguments.Overrides = None,
    json: arguments.Json = False,
    imports: Imports = None,
) -> None:
    """Print a recipe with every key written out."""
    from hpff.cli.recipe import show

    show(recipe, overrides or [], json=json)


@recipes.command("copy", epilog=example("hpff recipe copy demo mine.yaml epochs=5"))
def recipe_copy(
    recipe: arguments.RecipeName,
    destination: arguments.NewRecipe,
    overrides: arguments.Overrides = None,
    json: arguments.Json = False,
    imports: Imports = None,
) -> None:
    """Write a recipe, every key written out, into a file to edit."""
    from hpff.cli.recipe import copy

    copy(recipe, destination, overrides or [], json=json)


@recipes.command(
    "check",
    short_help="Validate a recipe: every fault, one line each.",
    epilog=example("hpff recipe check demo epochs=5"),
)
def recipe_check(
    recipe: arguments.RecipeName,
    overrides: arguments.Overrides = None,
    json: arguments.Json = False,
    imports: Imports = None,
) -> None:
    """Validate a recipe: every fault, one line each, with the key's full path."""
    from hpff.cli.recipe import check

    check(recipe, overrides or [], json=json)
