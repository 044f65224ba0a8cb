"""Diffusion: noise schedules, the denoising objective, and samplers."""
