"""A learned group element at the GL sites of adapters and attention, beside AdamW as it is.

``python -m studies.learned_moves`` trains m2, the group-element network, by evolution strategies on
small tunings and attention tasks, and compares it on other tasks with no move, with a balance by
hand, and with group elements of the same size that know nothing.
"""
