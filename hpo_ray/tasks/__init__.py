"""Shipped problems to tune: real data from scikit-learn (`digits`, `tabular`) and analytic functions (`analytic`).

Importing this package loads none of them: a task file names the class, and only its module is imported.
"""
