"""The command lines of both scripts. Only this package reads config files."""
