"""What everything else may use, and what uses nothing of the package.

checks     arguments and arrays: what was expected, and what came
storage    files: written as a whole or not at all, read with care
"""
