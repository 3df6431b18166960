"""Scores of whole videos; vlkd.metrics has them by name.

A folder, because vlkd.metrics.vpq is the function: a module of that name in vlkd/metrics would hide it.
"""
