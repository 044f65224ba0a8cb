"""The methods: each file holds one method for learning disentangled representations; `contract.py` is their interface.

README.md beside this file describes the methods, and how to add one.
"""
