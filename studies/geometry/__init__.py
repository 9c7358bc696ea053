"""Level sets, orbits and vector fields of functions of a few variables, for the theory."""
