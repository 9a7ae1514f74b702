"""Live progress in a notebook or terminal, rendered from a frozen model.

May import lookup and what is below it.
"""
