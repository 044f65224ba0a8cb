"""What training, sweeps and serving ask of a Ray cluster: a connection, resources, storage that every node sees."""
