"""Messages of the game's protocol that SMACv2 sends, as dataclasses that know their fields.

Names and fields: https://github.com/Blizzard/s2client-proto.
"""
