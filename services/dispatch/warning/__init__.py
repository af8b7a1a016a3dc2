"""Warnings to protected persons: their content, their delivery channels and their receipts."""
