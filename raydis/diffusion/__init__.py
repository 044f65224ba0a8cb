"""Noise schedules, the denoising objective and samplers."""
