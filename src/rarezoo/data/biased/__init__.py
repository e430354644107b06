"""Biased data sets: images in which something else than the class nearly always tells the class."""
