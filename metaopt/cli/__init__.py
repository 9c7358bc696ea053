"""The command lines; config files are known here alone."""
