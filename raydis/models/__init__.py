"""The networks, as plain PyTorch modules: encoders, the U-Net with Skip Dropout, anchors, and first stages."""
