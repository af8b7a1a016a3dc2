"""Every reader of every stream of the flow table, with its test messages and the check of their effects (tests/contract)."""
