"""Fraud detection on card payments: three rules, and a score that learns online from what banks report."""
