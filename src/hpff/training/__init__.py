"""Training from recipes: a recipe in, a run directory out."""
