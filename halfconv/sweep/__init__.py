"""Fleets: convert, validate and measure many models for many targets in several precisions, here or on a cluster.

A driver (`halfconv.sweep.driver`) owns the plan and the folder of results; each job runs in a process of its own.
"""
