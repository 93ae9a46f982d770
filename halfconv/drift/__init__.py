"""Drift: how far a half-precision model is from its reference, where it goes wrong, and whether that is too far."""
