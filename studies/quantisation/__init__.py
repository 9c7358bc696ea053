"""Networks equalised along their symmetries, and then rounded to few bits, against rounding alone.

``python -m studies.quantisation`` measures a depthwise network on MNIST, the character model of
:mod:`studies.adapters`, and MiniLM where the packages with it are installed. A batch of training
data is what the moves are made on; what rounding costs is measured on test data.
"""
