"""The paper's experiments, one module a study: ``python -m studies.NAME``."""
