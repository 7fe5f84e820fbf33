"""The control socket of a mount: messages, client, server."""
