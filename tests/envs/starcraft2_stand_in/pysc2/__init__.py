"""Stand-in for the parts of PySC2 that SMACv2 uses: its game is ``game.Game``."""
