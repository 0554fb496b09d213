"""How fast the engines and the manager are on this machine, beside the machine's own limits."""
