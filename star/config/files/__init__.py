"""The YAML files of settings; a package so that Hydra finds them wherever this is installed."""
