"""The laboratory behind `fastgrad lab`: vanishing and exploding gradients, and what each remedy does about them.

Each experiment is a module with `run(work) -> Result` and `sentences(...)`, whose wording follows from the figures.
"""
