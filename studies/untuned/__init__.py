"""Four networks that people have, each with the first settings that one would take."""
