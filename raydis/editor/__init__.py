"""Encode, edit, swap and traverse images with a trained model, for any method that can draw."""
