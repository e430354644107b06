"""How alike the representations of two networks are: mini-batch CKA of all pairs of layers."""

from rarezoo.similarity.activations import averaged, capture, flattened
from rarezoo.similarity.cka import MinibatchCKA, centred_gram, hsic1

__all__ = ["MinibatchCKA", "averaged", "capture", "centred_gram", "flattened", "hsic1"]
