"""One training step: hooks in the model's forward feed the schedule of local backwards."""
