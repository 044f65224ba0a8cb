"""A checkpoint is a folder of JSON and safetensors files that holds one trained model.

config.json          the RunConfig
weights.safetensors  the state dict of the method, which encoding and editing need
metrics.json         scores and losses
manifest.json        the version of the format, the sha256 of each file, and where the weights come from
training.safetensors, training.json  the state of the training; only in a checkpoint that can be resumed
"""
