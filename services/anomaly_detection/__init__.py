"""Anomaly detection on metric streams: each series is judged by its own history, online, in one pass."""
