"""The commands: arguments and output."""
