"""Where facts come from: files, network namespaces."""
