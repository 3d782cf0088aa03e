"""Import path of stand-ins for PySC2 and the game's protocol, which SMACv2's code imports."""
