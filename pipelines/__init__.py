"""Eidetic's verbs: one module each, which parses, builds and runs."""
