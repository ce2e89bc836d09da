"""Helpers that the whole package may use, and that import nothing of it.

checks     checks of arguments and arrays, whose errors say what was expected and what came
storage    files: written as a whole or not at all, and checked when they are read
"""
