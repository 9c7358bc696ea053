"""Studies of the paper's experiments and of its theory, one folder a section.

``python -m studies.NAME`` runs one: convergence (section 3), generalization (section 4), optimizers
(section 5.1), learned_teleportation (section 5.2), and with it controls, families and minibatches;
zoo and full_batch compare optimizers on small full-batch networks, the latter on real problems.
They may import all of the library; it imports nothing from here.
"""
