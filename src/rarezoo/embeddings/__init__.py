"""One HDF5 file with each galaxy's representation and predicted votes."""

from rarezoo.embeddings.store import Embeddings, open_embeddings

__all__ = ["Embeddings", "open_embeddings"]
