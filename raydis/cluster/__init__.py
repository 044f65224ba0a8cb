"""Functions of a Ray cluster that training, sweeps and serving share: connection, resources, and storage checks."""
