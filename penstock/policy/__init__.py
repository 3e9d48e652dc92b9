"""Selectors, identities, and policy compiled to kernel entries and L7 rights. Pure."""
