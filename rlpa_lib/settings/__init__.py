"""Typed settings of a run: sections, the loader that reads them from params/*.yaml, and checks that span
sections."""
