"""Traces: tables of what happened to pages over time, made, recorded and run again."""
