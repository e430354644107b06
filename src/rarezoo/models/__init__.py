"""Encoders with a bottleneck that predict vote counts, and how they are trained, saved and loaded."""
