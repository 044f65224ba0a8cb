"""Encode images to units and draw edited images, with the trained model of any method."""
