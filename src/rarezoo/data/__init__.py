"""Catalogs, images and batches: everything up to the model."""
