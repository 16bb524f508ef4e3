"""The chain rule, checked by measurement.

A claim predicts by hand (numpy, a formula, finite differences) what JAX and the project's own code are then measured
to do: never the same code on both sides. Popular statements that are false are claims too, each with a counterexample
that must refute it.
"""
