"""The certificate authority, SVIDs, and the secrets that Envoy asks for."""
