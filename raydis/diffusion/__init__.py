"""Diffusion: noise schedules, the denoising loss, and samplers."""
