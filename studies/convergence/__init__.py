"""The theory of sections 3, B, C, D and F.2, measured against its bounds."""
