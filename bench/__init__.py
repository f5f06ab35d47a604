"""Measurements of Moorage, beside its peers where there are any. Root, Linux, and Debian's packages are needed."""
