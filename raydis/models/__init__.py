"""Plain networks: blocks, encoder, U-Net with Skip Dropout, Dynamic Gaussian Anchoring, first stages."""
