"""Pictures of what a model has learned, and the HTML report of a run."""
