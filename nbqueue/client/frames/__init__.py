"""Outcomes and arguments as pandas objects.

May import lookup and what is below it, and calls.dataframes.
"""
