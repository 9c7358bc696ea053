"""Functions of a few variables whose constants, minimisers and level sets are known."""
