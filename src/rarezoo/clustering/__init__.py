"""The class search: select galaxies, find neighbours, lay out, cluster, describe and score the classes."""
