"""What pytest collects, given what is installed."""

from importlib.util import find_spec

# Doctests import their modules, and these import BenchMARL.
collect_ignore_glob = [] if find_spec("benchmarl") else ["torchrl_agentmixer/benchmarl/*"]
