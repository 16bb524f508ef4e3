"""The chain rule, checked by measurement: claims, their predictions, and what this machine says.

A claim predicts by hand (numpy, a formula, finite differences) what JAX and the project's own code are then measured
to do, or the other way round: never the same code twice. Popular statements that are false are here too, with a
counterexample; such a claim is right when it is refuted.
"""
