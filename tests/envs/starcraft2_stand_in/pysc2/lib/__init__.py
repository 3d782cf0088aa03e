"""Unit types and errors of the connection."""
