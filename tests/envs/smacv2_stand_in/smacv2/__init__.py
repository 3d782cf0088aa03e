"""Stands in for SMACv2: its interface, sizes and rules of legal actions, on a toy battle."""
