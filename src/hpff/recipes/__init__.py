"""Recipes: everything that decides a run, as YAML; and their reader."""
