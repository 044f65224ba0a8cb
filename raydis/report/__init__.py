"""Pictures for people: traversal and swap grids, Pareto fronts."""
