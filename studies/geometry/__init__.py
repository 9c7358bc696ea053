"""Level sets, orbits and vector fields of functions of a few variables: the theory's geometry."""
