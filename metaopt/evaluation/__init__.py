"""The table of methods, the driver that runs them, and what is made of the results."""
