"""The supervisor's process: start up, serve, drain, stop. The router is a child of its own."""
