"""Small full-batch networks of every usual kind: the learned optimizer against tuned rivals."""
