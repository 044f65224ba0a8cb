"""Pictures and pages for people: traversal and swap grids, plots, the report of a run."""
