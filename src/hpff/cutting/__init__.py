"""Where a model can be cut, and into which local modules it is."""
