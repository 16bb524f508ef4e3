"""The trainer: config, gradient-flow instruments, the pure core, the run around it, reports and commands.

Imports go one way: commands -> run, report -> core -> gradflow -> config, and all of them -> model, data.
"""
