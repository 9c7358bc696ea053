"""Small problems of unusual kinds, with default settings."""
