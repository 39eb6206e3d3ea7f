"""Shipped problems to tune: real data from scikit-learn (`digits`, `tabular`) and analytic functions (`analytic`).

`bilevel` and `bilevel_digits` have a gradient in their hyperparameters. Importing this package loads none of them: a
task file names the class, and only its module is imported.
"""
